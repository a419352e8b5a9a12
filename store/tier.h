// A place that keeps segments of objects, band by band. Host memory and RocksDB are two of them.
//
// Invariants every tier keeps, and tests/conformance/tier_conformance.h checks:
//   1. The bands of an upload in a tier are a prefix: 0..n-1. PutBand appends band n, DropBands
//      removes from the top; nothing else changes n.
//   2. A segment's bytes never change while it is there.
//   3. A SegmentRef stays readable and unchanged until destroyed, whatever is dropped meanwhile.
//
// Thread-safe: any method from any thread.
#ifndef KVTIER_STORE_TIER_H_
#define KVTIER_STORE_TIER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "kvcache/segment_ref.h"

namespace kvtier {

struct TierUsage {
  uint64_t bytes = 0;         // Segment bytes held, as the tier charges them.
  uint64_t budget_bytes = 0;  // 0: unbounded.
};

// Whether `bytes` more fit.
inline bool HasRoom(const TierUsage& usage, uint64_t bytes) {
  return usage.budget_bytes == 0 ||
         (usage.bytes <= usage.budget_bytes && bytes <= usage.budget_bytes - usage.bytes);
}

class Tier {
 public:
  virtual ~Tier() = default;

  // Adds the next band of `manifest`'s upload, [layers] segments of whole heads. All or nothing.
  //   RESOURCE_EXHAUSTED   no room within the budget, or the disk is full (nothing kept)
  //   FAILED_PRECONDITION  `band` is not the number of bands already here
  //   INVALID_ARGUMENT     number or sizes of the segments are not what the manifest says
  //   UNAVAILABLE          the medium failed; the same call may work later
  virtual absl::Status PutBand(const Manifest& manifest, BandIndex band,
                               std::span<const SegmentRef> layers) = 0;

  // Makes the bytes of one segment readable, without copying them when the tier can avoid it.
  // Every head's CRC32C is checked on each read from a medium that can rot (disk).
  //   NOT_FOUND   this tier does not hold the segment (a miss: empty message)
  //   DATA_LOSS   it did, but a CRC32C was wrong or bytes are missing (named). The tier keeps its
  //               state; the caller drops the bands.
  virtual absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                         LayerIndex layer) = 0;

  // Keeps bands 0..band_count-1 and removes the rest. 0 forgets the upload. Fine if there are
  // fewer.
  virtual absl::Status DropBands(const UploadId& upload, uint32_t band_count) = 0;

  // Bands of an upload that are here; 0 for an unknown one.
  virtual uint32_t BandCount(const UploadId& upload) = 0;

  virtual TierUsage Usage() = 0;
};

// For implementations of PutBand.
// INVALID_ARGUMENT unless `layers` are one segment per layer, of the sizes that the manifest says.
absl::Status CheckBandSegments(const Manifest& manifest, BandIndex band,
                               std::span<const SegmentRef> layers);
// FAILED_PRECONDITION: `band` is not the number of bands already here.
absl::Status NotNextBandError(const Manifest& manifest, BandIndex band, uint32_t band_count);

}  // namespace kvtier

#endif  // KVTIER_STORE_TIER_H_
