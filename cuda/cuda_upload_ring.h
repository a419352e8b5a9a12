// Host memory on its way to a device: a ring of pinned slots. What is copied in is in a slot when
// Copy() returns, so the caller's memory may change or go, whatever kind it is; the device reads
// the slot in stream order. A slot is used again when its last copy is done, so only a caller that
// is a whole ring ahead of the device waits for it.
#ifndef KVTIER_CUDA_CUDA_UPLOAD_RING_H_
#define KVTIER_CUDA_CUDA_UPLOAD_RING_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include <cuda_runtime_api.h>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"

namespace kvtier {

// Thread-safe but for Start(). REQUIRES of all calls: the stream's device is this thread's.
class CudaUploadRing {
 public:
  static constexpr uint64_t kSlotBytes = uint64_t{256} << 10;
  // Tables of a call take one slot each, so that the host may be that many calls ahead; weights
  // take one piece after the other.
  static constexpr size_t kSlots = 64;

  CudaUploadRing() = default;
  CudaUploadRing(const CudaUploadRing&) = delete;
  CudaUploadRing& operator=(const CudaUploadRing&) = delete;
  // REQUIRES: the device has done all copies, or its context is gone.
  ~CudaUploadRing();

  // Once, before anything else; an error leaves a ring that can only be destroyed.
  cudaError_t Start();

  // Enqueues the copy, in pieces where it is larger than a slot. After an error part of it may be
  // under way.
  cudaError_t Copy(const void* host, void* device, uint64_t bytes, cudaStream_t stream);

 private:
  size_t TakeSlot() ABSL_LOCKS_EXCLUDED(mutex_);
  void ReturnSlot(size_t slot) ABSL_LOCKS_EXCLUDED(mutex_);
  cudaError_t CopyPiece(size_t slot, const void* host, void* device, uint64_t bytes,
                        cudaStream_t stream);

  char* memory_ = nullptr;           // [kSlots, kSlotBytes], pinned
  std::vector<cudaEvent_t> events_;  // [kSlots] the slot's last copy; done where there was none.
  Mutex mutex_;
  CondVar returned_;
  std::deque<size_t> idle_ ABSL_GUARDED_BY(mutex_);  // No thread's; the longest unused first.
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_UPLOAD_RING_H_
