// What one reader may have in host memory of segments that it reads from disk: they lie in memory
// of the store's budget while anybody looks at them, like everything else there.
//
// A reader that has begun goes on: with its first segment it takes a slot of its largest one, and
// two more for reading ahead if that costs nobody anything, and keeps them until it is done, so
// that a slot's pages are used again and again. A budget that is too small for all refuses readers
// before they begin, and never starves two that hold half of each other's memory. Nobody waits for
// anybody.
//
// Thread-safe. Shared with the segments that were read, which may outlive the reader.
#ifndef KVTIER_STORE_READ_MEMORY_H_
#define KVTIER_STORE_READ_MEMORY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "kvcache/segment_ref.h"
#include "store/host_memory.h"

namespace kvtier {

class ReadMemory : public std::enable_shared_from_this<ReadMemory> {
 public:
  static constexpr size_t kSlots = 3;  // One is sent, two are read.
  // Where the disk takes nothing more, bands may be given up for good so that a reader gets memory,
  // but only for so many readers at once, each of another tenant: others wait for theirs. More than
  // one, so that one who reads slowly does not keep all others out.
  static constexpr size_t kReadersAtAnyCost = 4;
  using Slot = std::shared_ptr<BandMemory>;  // A piece (HostMemory::AllocatePiece).

  // `slot_bytes`: of the largest segment that will be read.
  static std::shared_ptr<ReadMemory> Create(uint64_t slot_bytes) {
    return std::shared_ptr<ReadMemory>(new ReadMemory(slot_bytes));
  }

  uint64_t slot_bytes() const { return slot_bytes_; }
  // Whether the reader has had its first slot.
  bool has_begun() const ABSL_LOCKS_EXCLUDED(mutex_);
  // It has it. False: it had begun already.
  bool Begin() ABSL_LOCKS_EXCLUDED(mutex_);
  // A slot that no segment has now; null if there is none.
  Slot TakeSlot() ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives a slot, or gives back one that was taken. What is beyond kSlots, or comes when the reader
  // is done, goes back to the budget. REQUIRES: of slot_bytes().
  void GiveSlot(Slot slot) ABSL_LOCKS_EXCLUDED(mutex_);
  // The first `bytes` of `slot`, which is given back when the last reader lets go of them.
  SegmentRef Attach(Slot slot, uint64_t bytes);
  // The reader is done.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  explicit ReadMemory(uint64_t slot_bytes) : slot_bytes_(slot_bytes) {}

  const uint64_t slot_bytes_;
  mutable Mutex mutex_;
  bool has_begun_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Slot> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_READ_MEMORY_H_
