#include "store/read_memory.h"

#include <utility>

namespace kvtier {

bool ReadMemory::has_begun() const {
  MutexLock lock(&mutex_);
  return has_begun_;
}

bool ReadMemory::Begin() {
  MutexLock lock(&mutex_);
  return !std::exchange(has_begun_, true);
}

ReadMemory::Slot ReadMemory::TakeSlot() {
  MutexLock lock(&mutex_);
  if (free_.empty()) return nullptr;
  Slot slot = std::move(free_.back());
  free_.pop_back();
  return slot;
}

void ReadMemory::GiveSlot(Slot slot) {
  MutexLock lock(&mutex_);  // Released before `slot` is.
  if (!is_closed_ && free_.size() < kSlots) free_.push_back(std::move(slot));
}

SegmentRef ReadMemory::Attach(Slot slot, uint64_t bytes) {
  class Reading {
   public:
    Reading(std::shared_ptr<ReadMemory> memory, Slot slot)
        : memory_(std::move(memory)), slot_(std::move(slot)) {}
    ~Reading() { memory_->GiveSlot(std::move(slot_)); }
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;

   private:
    const std::shared_ptr<ReadMemory> memory_;
    Slot slot_;
  };
  const ByteSpan segment = slot->Writable(LayerIndex(0)).first(bytes);
  return SegmentRef(std::make_shared<const Reading>(shared_from_this(), std::move(slot)), segment);
}

void ReadMemory::Close() {
  std::vector<Slot> released;  // After the lock.
  MutexLock lock(&mutex_);
  is_closed_ = true;
  released.swap(free_);
}

}  // namespace kvtier
