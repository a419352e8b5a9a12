// How a bounded number of slots (calls, open uploads), or of bytes (under leases), is shared: who
// asks gets some while it holds no more with them than are free. So one holder alone gets half of
// them, n that want all get 1/(n+1) each, and as much stays free: whoever comes next is never kept
// out by those who came first. (Known from switches that share packet memory: Choudhury and Hahne,
// Dynamic Queue Length Thresholds, 1998.)
#ifndef KVTIER_BASE_FAIR_SHARE_H_
#define KVTIER_BASE_FAIR_SHARE_H_

#include <cstdint>

namespace kvtier {

enum class SlotAnswer {
  kYes,
  kShareIsUsedUp,  // The holder has as many as are free.
  kAllAreTaken,
};

// Whether a holder of `own` gets `more` of `max`, of which `taken` are taken by all, its own
// included. Who holds nothing gets whatever is free.
constexpr SlotAnswer MayTake(uint64_t own, uint64_t more, uint64_t taken, uint64_t max) {
  const uint64_t free = max - (taken < max ? taken : max);
  if (more > free) return SlotAnswer::kAllAreTaken;
  return own <= free - more ? SlotAnswer::kYes : SlotAnswer::kShareIsUsedUp;
}

constexpr SlotAnswer MayTakeSlot(uint64_t own, uint64_t taken, uint64_t slots_max) {
  return MayTake(own, 1, taken, slots_max);
}

// What one holder gets while there is no other.
constexpr uint64_t ShareOfOne(uint64_t slots_max) { return (slots_max + 1) / 2; }

}  // namespace kvtier

#endif  // KVTIER_BASE_FAIR_SHARE_H_
