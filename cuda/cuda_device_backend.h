// The backend over a GPU's Device, with the libraries that it has there.
#ifndef KVTIER_CUDA_CUDA_DEVICE_BACKEND_H_
#define KVTIER_CUDA_CUDA_DEVICE_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "cuda/device.h"

namespace kvtier {

// Products by cuBLASLt, and by cuDNN the attention that it takes. Without cuDNN all attention runs
// on this folder's kernels, which the log says.
// Errors: MakeCudaGemm, MakeDeviceBackend. REQUIRES: `device` is a GPU (cuda/cuda_device.h).
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackendOver(std::shared_ptr<Device> device,
                                                             DType activations);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_DEVICE_BACKEND_H_
