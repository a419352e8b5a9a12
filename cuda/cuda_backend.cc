#include "cuda/cuda_backend.h"

#include <utility>

#include "base/status_macros.h"
#include "cuda/cuda_device.h"
#include "cuda/cuda_gemm.h"
#include "cuda/device_backend.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int ordinal, DType activations) {
  KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<Device> device, MakeCudaDevice(ordinal));
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<Gemm> gemm, MakeCudaGemm(device));
  return MakeDeviceBackend(std::move(device), std::move(gemm), activations);
}

}  // namespace kvtier
