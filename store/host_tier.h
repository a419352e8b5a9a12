// Segments in host memory. Get hands out the stored bytes themselves.
#ifndef KVTIER_STORE_HOST_TIER_H_
#define KVTIER_STORE_HOST_TIER_H_

#include <memory>

#include "store/tier.h"

namespace kvtier {

// PutBand keeps the given SegmentRefs (no copy); bytes count against `budget_bytes` until dropped
// AND no reader holds them any more.
std::unique_ptr<Tier> MakeHostTier(uint64_t budget_bytes);

}  // namespace kvtier

#endif  // KVTIER_STORE_HOST_TIER_H_
