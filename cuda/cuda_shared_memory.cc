#include "cuda/cuda_shared_memory.h"

#include <set>
#include <utility>

#include <cuda_runtime_api.h>

#include "base/mutex.h"

namespace kvtier {
namespace {

class RaisedKernels {
 public:
  bool Contains(int device, const void* kernel) {
    MutexLock lock(&mutex_);
    return raised_.count({device, kernel}) > 0;
  }
  void Insert(int device, const void* kernel) {
    MutexLock lock(&mutex_);
    raised_.insert({device, kernel});
  }

 private:
  Mutex mutex_;
  std::set<std::pair<int, const void*>> raised_ ABSL_GUARDED_BY(mutex_);
};

cudaError_t Raise(int device, const void* kernel) {
  int block_bytes = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  cudaFuncAttributes attributes = {};
  error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  const int dynamic_bytes = block_bytes - static_cast<int>(attributes.sharedSizeBytes);
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes);
}

}  // namespace

int AllowLargestSharedMemory(const void* kernel) {
  static auto* const raised = new RaisedKernels;  // Never destroyed: threads may outlive main().
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    if (raised->Contains(device, kernel)) return 0;
    // Two threads may both get here; they set the same limit.
    error = Raise(device, kernel);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // Read, so that no later call reports it.
    return error;
  }
  raised->Insert(device, kernel);
  return 0;
}

}  // namespace kvtier
