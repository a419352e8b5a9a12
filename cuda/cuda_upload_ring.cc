#include "cuda/cuda_upload_ring.h"

#include <algorithm>
#include <cstring>

namespace kvtier {

CudaUploadRing::~CudaUploadRing() {
  for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  if (memory_ != nullptr) cudaFreeHost(memory_);
}

cudaError_t CudaUploadRing::Start() {
  void* memory = nullptr;
  cudaError_t error = cudaMallocHost(&memory, kSlots * kSlotBytes);
  if (error != cudaSuccess) return error;
  memory_ = static_cast<char*>(memory);
  for (size_t slot = 0; slot < kSlots; ++slot) {
    cudaEvent_t event = nullptr;
    error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (error != cudaSuccess) return error;
    events_.push_back(event);
    ReturnSlot(slot);
  }
  return cudaSuccess;
}

cudaError_t CudaUploadRing::Copy(const void* host, void* device, uint64_t bytes,
                                 cudaStream_t stream) {
  for (uint64_t at = 0; at < bytes; at += kSlotBytes) {
    const size_t slot = TakeSlot();
    const cudaError_t error =
        CopyPiece(slot, static_cast<const char*>(host) + at, static_cast<char*>(device) + at,
                  std::min(kSlotBytes, bytes - at), stream);
    ReturnSlot(slot);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t CudaUploadRing::CopyPiece(size_t slot, const void* host, void* device, uint64_t bytes,
                                      cudaStream_t stream) {
  char* const staged = memory_ + slot * kSlotBytes;
  cudaError_t error = cudaEventSynchronize(events_[slot]);
  if (error != cudaSuccess) return error;
  std::memcpy(staged, host, bytes);
  error = cudaMemcpyAsync(device, staged, bytes, cudaMemcpyHostToDevice, stream);
  if (error != cudaSuccess) return error;
  error = cudaEventRecord(events_[slot], stream);
  // Without its event nothing else tells when the slot may be written again.
  if (error != cudaSuccess) cudaStreamSynchronize(stream);
  return error;
}

size_t CudaUploadRing::TakeSlot() {
  MutexLock lock(&mutex_);
  while (idle_.empty()) returned_.Wait(&mutex_);
  const size_t slot = idle_.front();
  idle_.pop_front();
  return slot;
}

void CudaUploadRing::ReturnSlot(size_t slot) {
  MutexLock lock(&mutex_);
  idle_.push_back(slot);
  returned_.Signal();
}

}  // namespace kvtier
