#include "store/scrubber.h"

#include <algorithm>

#include "base/log.h"

namespace kvtier {

Scrubber::Scrubber(const ScrubberOptions& options, TieredStore& store, Clock& clock)
    : options_(options), store_(store), clock_(clock) {
  if (options_.bytes_per_second > 0) thread_ = std::thread([this] { Run(); });
}

Scrubber::~Scrubber() {
  {
    MutexLock lock(&mutex_);
    is_stopped_ = true;
    stopped_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Scrubber::Run() {
  absl::Time begin = clock_.Now() + options_.start_delay;
  while (WaitUntil(begin)) {
    if (!Pass()) return;
    begin = std::max(begin + options_.pass_interval, clock_.Now());
  }
}

bool Scrubber::Pass() {
  const uint64_t lost = counters_.lost;
  const uint64_t repaired = counters_.repaired;
  std::optional<ObjectName> name;
  while ((name = store_.NextObject(name)).has_value()) {
    if (!ScrubObject(*name)) return false;
  }
  ++counters_.passes;
  if (counters_.lost > lost || counters_.repaired > repaired) {
    KVTIER_LOG(ERROR) << "scrub: " << counters_.repaired - repaired
                      << " damaged segments were repaired, " << counters_.lost - lost
                      << " had no intact copy; look at the disk";
  }
  return true;
}

bool Scrubber::ScrubObject(const ObjectName& name) {
  const absl::StatusOr<ObjectStat> stat = store_.Stat(name.tenant, name.key);
  if (!stat.ok()) return true;  // Deleted meanwhile.
  const Manifest& manifest = *stat->manifest;
  for (uint32_t band = 0; band < stat->resident_bands; ++band) {
    for (uint32_t layer = 0; layer < manifest.geometry.layer_count(); ++layer) {
      const absl::StatusOr<VerifiedCopies> verified =
          store_.VerifyCopies(manifest.upload_id, BandIndex(band), LayerIndex(layer));
      // A read that failed has cost the disk as much.
      const uint64_t segment_bytes =
          manifest.segment(BandIndex(band), LayerIndex(layer)).encoded_bytes();
      const uint64_t bytes = verified.ok() ? verified->bytes_read : segment_bytes;
      const bool is_gone = absl::IsNotFound(verified.status());
      if (!is_gone) counters_.bytes += bytes;
      if (verified.ok() && verified->repaired) ++counters_.repaired;
      if (absl::IsDataLoss(verified.status())) ++counters_.lost;
      if (!verified.ok() && !is_gone && !absl::IsDataLoss(verified.status())) {
        ++counters_.errors;
        KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "scrub: " << verified.status().message();
      }
      if (!Pay(is_gone ? 0 : bytes)) return false;
      if (!verified.ok()) return true;  // What is above is gone too, or the disk needs a rest.
    }
  }
  return true;
}

// No credit for time in which nothing was read: after a long wait the rate holds as before.
bool Scrubber::Pay(uint64_t bytes) {
  next_read_ =
      std::max(next_read_, clock_.Now()) +
      absl::Seconds(static_cast<double>(bytes) / static_cast<double>(options_.bytes_per_second));
  return WaitUntil(next_read_);
}

bool Scrubber::WaitUntil(absl::Time time) {
  MutexLock lock(&mutex_);
  while (!is_stopped_ && clock_.Now() < time) clock_.WaitWithDeadline(&mutex_, &stopped_, time);
  return !is_stopped_;
}

}  // namespace kvtier
