// Device memory on its way to the host beside what the device computes: a stream of its own, and a
// ring of pinned slots. A copy follows what the computing stream has been given so far; its first
// slots are filled while that stream goes on, the rest as Wait() empties them. Wait() copies
// straight into the host's memory where other copies hold every slot.
#ifndef KVTIER_CUDA_CUDA_DOWNLOAD_RING_H_
#define KVTIER_CUDA_CUDA_DOWNLOAD_RING_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include <cuda_runtime_api.h>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

namespace kvtier {

// Thread-safe. REQUIRES of all calls, also those of copies: the device is this thread's.
class CudaDownloadRing {
 public:
  static constexpr uint64_t kSlotBytes = uint64_t{4} << 20;
  static constexpr size_t kSlots = 16;
  // Of one copy, so that there are some for the one that begins before it is waited for.
  static constexpr size_t kCopySlots = kSlots / 2;

  // One copy. Not thread-safe. The ring outlives it.
  class Copy {
   public:
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;
    // Waits until the device reads nothing for it any more.
    ~Copy();
    // Once.
    cudaError_t Wait();

   private:
    friend class CudaDownloadRing;
    struct Piece {
      size_t slot = 0;
      uint64_t at = 0;
      uint64_t bytes = 0;
    };
    Copy(CudaDownloadRing& ring, const void* device, void* host, uint64_t bytes)
        : ring_(ring),
          device_(static_cast<const char*>(device)),
          host_(static_cast<char*>(host)),
          bytes_(bytes) {}
    // The next piece into a slot that is this copy's.
    cudaError_t Send(size_t slot);
    // Pieces into slots that are free, as many as this copy may have.
    cudaError_t SendSome();

    CudaDownloadRing& ring_;
    const char* const device_;
    char* const host_;
    const uint64_t bytes_;
    uint64_t sent_ = 0;         // Bytes that have a slot, or had one.
    std::deque<Piece> pieces_;  // Under way, in order.
  };

  CudaDownloadRing() = default;
  CudaDownloadRing(const CudaDownloadRing&) = delete;
  CudaDownloadRing& operator=(const CudaDownloadRing&) = delete;
  // REQUIRES: every copy is gone.
  ~CudaDownloadRing();

  // Begins to copy what `computing` has written by now. The first call makes the ring: a program
  // that downloads nothing in this way pins no memory for it. After an error nothing is under way.
  cudaError_t Begin(const void* device, void* host, uint64_t bytes, cudaStream_t computing,
                    std::unique_ptr<Copy>* copy);

 private:
  cudaError_t StartLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // False if none is free.
  bool TakeSlot(size_t* slot);
  void ReturnSlot(size_t slot);

  Mutex mutex_;
  // Set by StartLocked(), then constant.
  cudaStream_t stream_ = nullptr;
  char* memory_ = nullptr;           // [kSlots, kSlotBytes], pinned
  std::vector<cudaEvent_t> filled_;  // [kSlots]
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  cudaEvent_t written_ ABSL_GUARDED_BY(mutex_) = nullptr;  // What a copy waits for.
  std::vector<size_t> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_DOWNLOAD_RING_H_
