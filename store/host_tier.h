// Segments in host memory. Get hands out the stored bytes themselves.
#ifndef KVTIER_STORE_HOST_TIER_H_
#define KVTIER_STORE_HOST_TIER_H_

#include <memory>

#include "store/host_memory.h"
#include "store/tier.h"

namespace kvtier {

// PutBand takes over a band that lies in the tier's memory already, sealed, as an upload's does;
// other segments are copied into it. Bytes stay charged to the memory's budget until they are
// dropped AND no reader holds any of the band: Usage() is that budget's, whoever charged it.
class HostTier : public Tier {
 public:
  // What PutBand of these segments would charge: 0 if they lie in the tier's memory.
  virtual uint64_t ChargeOf(const Manifest& manifest, BandIndex band,
                            std::span<const SegmentRef> layers) const = 0;
  // The memory of one band; null if the band is not here. It stays readable and charged until it is
  // let go of, dropped or not.
  virtual std::shared_ptr<const BandMemory> Band(const UploadId& upload, BandIndex band) = 0;
  // Whether somebody holds the top band of the upload, so that dropping it would free nothing now.
  virtual bool IsTopBandHeld(const UploadId& upload) = 0;
};

std::unique_ptr<HostTier> MakeHostTier(std::shared_ptr<HostMemory> memory);
// With memory of its own. 0: no budget.
std::unique_ptr<HostTier> MakeHostTier(uint64_t budget_bytes);

}  // namespace kvtier

#endif  // KVTIER_STORE_HOST_TIER_H_
