#include "services/load_times.h"

#include <cmath>

namespace kvtier {
namespace {

const double kKeep = std::exp2(-1.0 / 16);  // After one more fetch.

}  // namespace

void LoadTimes::Record(Source source, uint64_t bytes, absl::Duration elapsed) {
  // A clock that stood still, or nothing to send, says nothing about a rate.
  if (bytes == 0 || elapsed <= absl::ZeroDuration()) return;
  MutexLock lock(&mutex_);
  Sum& sum = sums_[static_cast<size_t>(source)];
  sum.bytes = kKeep * sum.bytes + static_cast<double>(bytes);
  sum.seconds = kKeep * sum.seconds + absl::ToDoubleSeconds(elapsed);
}

std::optional<absl::Duration> LoadTimes::Estimate(Source source, uint64_t bytes) const {
  MutexLock lock(&mutex_);
  const Sum& sum = sums_[static_cast<size_t>(source)];
  if (sum.bytes == 0) return std::nullopt;
  return absl::Seconds(static_cast<double>(bytes) * sum.seconds / sum.bytes);
}

}  // namespace kvtier
