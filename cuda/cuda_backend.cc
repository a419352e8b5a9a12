#include "cuda/cuda_backend.h"

#include <utility>

#include "base/status_macros.h"
#include "cuda/cuda_device.h"
#include "cuda/cuda_device_backend.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int ordinal, DType activations) {
  KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<Device> device, MakeCudaDevice(ordinal));
  return MakeCudaBackendOver(std::move(device), activations);
}

}  // namespace kvtier
