// A write of which a loss of power left some sectors.
#ifndef KVTIER_TESTS_FAULT_STORE_TORN_WRITE_H_
#define KVTIER_TESTS_FAULT_STORE_TORN_WRITE_H_

#include <cstdint>

#include "tests/fault/store/disk_state.h"

namespace kvtier {

inline constexpr uint64_t kSectorBytes = 512;  // The least that a disk loses.

// How many of them a kWrite touches.
uint64_t SectorsOf(const DiskOp& write);

// The sectors of a write whose bits are in `kept`, the first one's the lowest, reach the disk and
// are synced.
void ApplySome(const DiskOp& write, uint64_t kept, DiskState* state);

}  // namespace kvtier

#endif  // KVTIER_TESTS_FAULT_STORE_TORN_WRITE_H_
