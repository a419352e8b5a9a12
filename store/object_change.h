// What happened to an object that the store serves, and why. Each such change is told once, under
// the store's mutex, in the order in which readers can see them (TieredStoreImpl::OnChange).
#ifndef KVTIER_STORE_OBJECT_CHANGE_H_
#define KVTIER_STORE_OBJECT_CHANGE_H_

#include <cstdint>

#include "store/object_index.h"

namespace kvtier {

enum class ChangeCause {
  kPut,        // An upload was acknowledged.
  kRecovered,  // Found on disk at start-up.
  kReplaced,   // Another upload of its key was acknowledged.
  kRequested,  // Somebody asked for it: Delete, DropBands.
  kPressure,   // A budget, or the disk, is full.
  kLoss,       // Bytes failed their checksum and no intact copy is left.
  kExpired,    // Its time to live is over.
};

struct ObjectChange {
  ObjectState& object;
  uint32_t bands_before = 0;  // That a new reader saw. 0: it is new.
  uint32_t bands_after = 0;   // That a new reader sees now. 0: its key does not find it any more.
  ChangeCause cause = ChangeCause::kPut;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_OBJECT_CHANGE_H_
