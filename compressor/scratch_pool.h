// Buffers that operations borrow and give back, so that a steady stream of them allocates nothing.
#ifndef KVTIER_COMPRESSOR_SCRATCH_POOL_H_
#define KVTIER_COMPRESSOR_SCRATCH_POOL_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/aligned_bytes.h"
#include "base/mutex.h"

namespace kvtier {

// Thread-safe. Keeps as many buffers as were ever borrowed at once, each at its largest size;
// outlives what is borrowed.
class ScratchPool {
 public:
  // Floats at a 64-byte boundary, content unspecified; given back by the destructor. Null data()
  // when there is no memory.
  class Lease {
   public:
    Lease(ScratchPool* pool, AlignedBytes bytes) : pool_(pool), bytes_(std::move(bytes)) {}
    ~Lease() { pool_->GiveBack(std::move(bytes_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* data() { return reinterpret_cast<float*>(bytes_.data()); }

   private:
    ScratchPool* const pool_;
    AlignedBytes bytes_;
  };

  Lease Borrow(int64_t floats) ABSL_LOCKS_EXCLUDED(mutex_) {
    return Lease(this, TakeOrAllocate(static_cast<size_t>(floats) * sizeof(float)));
  }

 private:
  AlignedBytes TakeOrAllocate(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_) {
    AlignedBytes buffer;
    {
      MutexLock lock(&mutex_);
      if (!free_.empty()) {
        buffer = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (buffer.size() >= bytes) return buffer;
    auto larger = AlignedBytes::TryAllocate(bytes, AlignedBytes::Fill::kUninitialized);
    return larger.ok() ? *std::move(larger) : AlignedBytes();
  }
  void GiveBack(AlignedBytes bytes) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (bytes.empty()) return;
    MutexLock lock(&mutex_);
    free_.push_back(std::move(bytes));
  }

  Mutex mutex_;
  std::vector<AlignedBytes> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SCRATCH_POOL_H_
