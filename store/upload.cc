#include "store/upload.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "kvcache/segment.h"
#include "kvcache/segment_filler.h"

namespace kvtier {

// Segments are numbered band-major: index = band * layers + layer.
//   1. Segments [0, next) are whole and verified; `verified_bytes` is their sum, which is also the
//      object offset at which segment `next` begins (empty segments are passed at once).
//   2. A band whose segments are all verified is sealed.
//   3. verified_bytes <= received_bytes; the bytes between them are the first of segment `next`,
//      and `filler`, if it is there, has taken and summed just these.
struct Upload::State {
  std::vector<std::shared_ptr<BandMemory>> bands;  // [bands]
  std::vector<SegmentRef> segments;                // [next]
  size_t next = 0;
  size_t segment_count = 0;
  std::optional<SegmentFiller> filler;
  uint64_t verified_bytes = 0;
  uint64_t received_bytes = 0;
  uint64_t total_bytes = 0;
};

uint64_t Upload::ChargeOf(const Manifest& manifest, const HostMemory& memory) {
  uint64_t bytes = 0;
  for (const BandEntry& band : manifest.bands) bytes += memory.ChargeOf(band);
  return bytes;
}

absl::StatusOr<std::shared_ptr<Upload>> Upload::Create(std::shared_ptr<const Manifest> manifest,
                                                       HostMemory& memory) {
  auto state = std::make_shared<State>();
  state->total_bytes = manifest->total_bytes();
  for (const BandEntry& band : manifest->bands) {
    KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<BandMemory> bytes, memory.Allocate(band));
    state->bands.push_back(std::move(bytes));
    state->segment_count += band.layers.size();
  }
  state->segments.reserve(state->segment_count);
  std::shared_ptr<Upload> upload(new Upload(std::move(manifest)));
  {
    MutexLock lock(&upload->mutex_);
    upload->state_ = std::move(state);
  }
  // Passes the empty segments at the front; an object may consist of nothing else.
  KVTIER_RETURN_IF_ERROR(upload->Append(0, {}));
  return upload;
}

absl::Status Upload::Append(uint64_t object_offset, std::span<const std::byte> bytes) {
  MutexLock lock(&mutex_);
  State& state = *state_;
  if (object_offset > state.total_bytes || bytes.size() > state.total_bytes - object_offset) {
    return absl::InvalidArgumentError(absl::StrCat(
        "upload ", manifest_->upload_id.ToHex(), ": ", bytes.size(), " bytes at offset ",
        object_offset, " reach past the object's end at ", state.total_bytes));
  }
  if (object_offset > state.received_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("upload ", manifest_->upload_id.ToHex(),
                                                   ": gap between ", state.received_bytes,
                                                   " received bytes and offset ", object_offset));
  }
  // What a resumed stream repeats is skipped.
  bytes = bytes.subspan(std::min<uint64_t>(bytes.size(), state.received_bytes - object_offset));

  const uint32_t layers = manifest_->geometry.layer_count();
  while (state.next < state.segment_count) {
    const BandIndex band(static_cast<uint32_t>(state.next / layers));
    const LayerIndex layer(static_cast<uint32_t>(state.next % layers));
    BandMemory& memory = *state.bands[band.value()];
    if (!state.filler.has_value()) {
      state.filler.emplace(manifest_->segment(band, layer),
                           HeadRange{0, manifest_->geometry.kv_heads}, memory.Writable(layer),
                           SegmentFiller::Check::kVerify);
    }
    const ByteSpan piece = bytes.first(std::min<uint64_t>(bytes.size(), state.filler->missing()));
    if (piece.size() == state.filler->missing()) {
      KVTIER_SYNC_POINT("upload.append.before_verify");
    }
    // Each byte is copied and summed in one pass: a segment is larger than the cache.
    const absl::Status intact = state.filler->Append(piece);
    if (!intact.ok()) {
      state.filler.reset();
      state.received_bytes = state.verified_bytes;
      return absl::InvalidArgumentError(absl::StrCat("upload ", manifest_->upload_id.ToHex(),
                                                     ", band ", band.value(), ", layer ",
                                                     layer.value(), ": ", intact.message()));
    }
    state.received_bytes += piece.size();
    bytes = bytes.subspan(piece.size());
    if (!state.filler->done()) break;

    state.filler.reset();
    // What nobody could read must not be stored under a right checksum.
    const absl::Status content =
        CheckSegmentContent(*manifest_, band, layer, memory.Writable(layer));
    if (!content.ok()) {
      state.received_bytes = state.verified_bytes;
      return absl::InvalidArgumentError(
          absl::StrCat("upload ", manifest_->upload_id.ToHex(), ", band ", band.value(), ", layer ",
                       layer.value(), ": intact, but no segment: ", content.message()));
    }
    state.verified_bytes = state.received_bytes;
    uploaded_bytes_.store(state.verified_bytes, std::memory_order_release);
    state.segments.push_back(memory.Segment(layer));
    if (layer.value() + 1 == layers) memory.Seal();
    ++state.next;
  }
  return absl::OkStatus();
}

bool Upload::complete() const {
  MutexLock lock(&mutex_);
  return state_->next == state_->segment_count;
}

std::vector<SegmentRef> Upload::segments() const {
  MutexLock lock(&mutex_);
  KVTIER_CHECK_EQ(state_->next, state_->segment_count) << "the upload is not complete";
  return state_->segments;
}

}  // namespace kvtier
