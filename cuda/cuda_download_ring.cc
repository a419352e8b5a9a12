#include "cuda/cuda_download_ring.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kvtier {

CudaDownloadRing::~CudaDownloadRing() {
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  MutexLock lock(&mutex_);
  if (written_ != nullptr) cudaEventDestroy(written_);
  for (const cudaEvent_t event : filled_) cudaEventDestroy(event);
  if (memory_ != nullptr) cudaFreeHost(memory_);
}

// What an earlier call made is kept: a later one goes on where that failed.
cudaError_t CudaDownloadRing::StartLocked() {
  if (started_) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  if (stream_ == nullptr) {
    error = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    if (error != cudaSuccess) return error;
  }
  if (written_ == nullptr) {
    error = cudaEventCreateWithFlags(&written_, cudaEventDisableTiming);
    if (error != cudaSuccess) return error;
  }
  if (memory_ == nullptr) {
    void* memory = nullptr;
    error = cudaMallocHost(&memory, kSlots * kSlotBytes);
    if (error != cudaSuccess) return error;
    memory_ = static_cast<char*>(memory);
  }
  while (filled_.size() < kSlots) {
    cudaEvent_t event = nullptr;
    error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (error != cudaSuccess) return error;
    idle_.push_back(filled_.size());
    filled_.push_back(event);
  }
  started_ = true;
  return cudaSuccess;
}

cudaError_t CudaDownloadRing::Begin(const void* device, void* host, uint64_t bytes,
                                    cudaStream_t computing, std::unique_ptr<Copy>* copy) {
  {
    MutexLock lock(&mutex_);
    cudaError_t error = StartLocked();
    if (error != cudaSuccess) return error;
    // The wait is for what the event records now, so that the next copy may record it again.
    error = cudaEventRecord(written_, computing);
    if (error != cudaSuccess) return error;
    error = cudaStreamWaitEvent(stream_, written_, 0);
    if (error != cudaSuccess) return error;
  }
  std::unique_ptr<Copy> begun(new Copy(*this, device, host, bytes));
  const cudaError_t error = begun->SendSome();
  if (error == cudaSuccess) *copy = std::move(begun);
  return error;
}

cudaError_t CudaDownloadRing::Copy::SendSome() {
  for (size_t slot = 0; sent_ < bytes_ && pieces_.size() < kCopySlots && ring_.TakeSlot(&slot);) {
    const cudaError_t error = Send(slot);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t CudaDownloadRing::Copy::Send(size_t slot) {
  const uint64_t at = sent_;
  const uint64_t bytes = std::min(kSlotBytes, bytes_ - at);
  sent_ += bytes;
  // From here on the destructor gives the slot back.
  pieces_.push_back({slot, at, bytes});
  const cudaError_t error = cudaMemcpyAsync(ring_.memory_ + slot * kSlotBytes, device_ + at, bytes,
                                            cudaMemcpyDeviceToHost, ring_.stream_);
  if (error != cudaSuccess) return error;
  return cudaEventRecord(ring_.filled_[slot], ring_.stream_);
}

cudaError_t CudaDownloadRing::Copy::Wait() {
  const cudaError_t begun = SendSome();  // What was not to be had at the beginning.
  if (begun != cudaSuccess) return begun;
  while (!pieces_.empty()) {
    const Piece piece = pieces_.front();
    const cudaError_t error = cudaEventSynchronize(ring_.filled_[piece.slot]);
    if (error != cudaSuccess) return error;
    std::memcpy(host_ + piece.at, ring_.memory_ + piece.slot * kSlotBytes, piece.bytes);
    pieces_.pop_front();
    if (sent_ == bytes_) {
      ring_.ReturnSlot(piece.slot);
      continue;
    }
    const cudaError_t sent = Send(piece.slot);
    if (sent != cudaSuccess) return sent;
  }
  if (sent_ == bytes_) return cudaSuccess;
  // Every slot is another copy's.
  const uint64_t at = sent_;
  sent_ = bytes_;
  const cudaError_t error =
      cudaMemcpyAsync(host_ + at, device_ + at, bytes_ - at, cudaMemcpyDeviceToHost, ring_.stream_);
  if (error != cudaSuccess) return error;
  return cudaStreamSynchronize(ring_.stream_);
}

CudaDownloadRing::Copy::~Copy() {
  if (pieces_.empty()) return;
  // Not the events: of a piece that failed there is none.
  cudaStreamSynchronize(ring_.stream_);
  for (const Piece& piece : pieces_) ring_.ReturnSlot(piece.slot);
}

bool CudaDownloadRing::TakeSlot(size_t* slot) {
  MutexLock lock(&mutex_);
  if (idle_.empty()) return false;
  *slot = idle_.back();
  idle_.pop_back();
  return true;
}

void CudaDownloadRing::ReturnSlot(size_t slot) {
  MutexLock lock(&mutex_);
  idle_.push_back(slot);
}

}  // namespace kvtier
