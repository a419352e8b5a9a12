// Which segments a fetch moves, and in which order: the agreement between the end that sends and
// the end that receives. Both build the plan from the manifest, so neither believes the other.
#ifndef KVTIER_SERVICES_FETCH_PLAN_H_
#define KVTIER_SERVICES_FETCH_PLAN_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/bytes.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "kvcache/transport.h"

namespace kvtier {

// Immutable value. Segments follow layer by layer, bands 0..band_count-1 inside a layer.
struct FetchPlan {
  std::shared_ptr<const Manifest> manifest;
  uint32_t band_count = 0;
  LayerRange layers;
  HeadRange heads;

  // Where the asked heads lie inside one segment.
  SegmentEntry::ByteRange bytes_of(BandIndex band, LayerIndex layer) const {
    return manifest->segment(band, layer).HeadBytes(heads);
  }
  uint64_t payload_bytes() const;
};

// The plan for `request` when bands 0..resident_bands-1 are there.
//   NOT_FOUND        fewer bands than the request accepts (empty message)
//   OUT_OF_RANGE     layers or heads past the end, named with the count
//   INVALID_ARGUMENT an empty range; min_ratio above ratio
absl::StatusOr<FetchPlan> PlanFetch(std::shared_ptr<const Manifest> manifest,
                                    uint32_t resident_bands, const FetchRequest& request);
// The plan for a number of bands that somebody else chose. OUT_OF_RANGE if it has not so many.
absl::StatusOr<FetchPlan> PlanBands(std::shared_ptr<const Manifest> manifest, uint32_t band_count,
                                    const FetchRequest& request);

// The manifest that the other end announced, encoded, in answer to `request`. `where` begins the
// message of DATA_LOSS: "fetch stream".
//   FAILED_PRECONDITION  an object of a version that this build does not read
//   DATA_LOSS            not a manifest; of another object, or another upload than was asked for
absl::StatusOr<std::shared_ptr<const Manifest>> ReadAnnouncedManifest(ByteSpan encoded,
                                                                      const FetchRequest& request,
                                                                      absl::string_view where);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FETCH_PLAN_H_
