// What an error of CUDA's runtime is to a caller: which gRPC code, so that it knows whether another
// device, less memory or nothing helps. Header only: kvtier_nccl is no part of kvtier_cuda.
#ifndef KVTIER_CUDA_CUDA_ERROR_H_
#define KVTIER_CUDA_CUDA_ERROR_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"

namespace kvtier {

// UNAVAILABLE: this machine has no device that this program can use, or none now.
// RESOURCE_EXHAUSTED: no memory. INTERNAL: the rest. REQUIRES: not cudaSuccess.
inline absl::StatusCode CodeOfCudaError(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:  // The toolkit's libcuda was linked, or found first.
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

// Of a call that counts or describes devices: a driver that does not start is none, too. Once a
// device is in use these two mean something else, and are INTERNAL.
inline absl::StatusCode CodeOfCudaProbeError(cudaError_t error) {
  return error == cudaErrorInitializationError || error == cudaErrorOperatingSystem
             ? absl::StatusCode::kUnavailable
             : CodeOfCudaError(error);
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_ERROR_H_
