#include "cuda/cuda_device_backend.h"

#include <utility>

#include "base/log.h"
#include "base/status_macros.h"
#include "cuda/cuda_cudnn_attention.h"
#include "cuda/cuda_gemm.h"
#include "cuda/device_backend.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackendOver(std::shared_ptr<Device> device,
                                                             DType activations) {
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<Gemm> gemm, MakeCudaGemm(device));
  std::unique_ptr<FusedAttention> fused;
  absl::StatusOr<std::unique_ptr<FusedAttention>> cudnn = MakeCudnnAttention(device);
  if (cudnn.ok()) {
    fused = *std::move(cudnn);
  } else {
    KVTIER_LOG(WARNING) << device->name() << ": prefill and scoring run without cuDNN, slower: "
                        << cudnn.status().message();
  }
  return MakeDeviceBackend(std::move(device), std::move(gemm), activations, std::move(fused));
}

}  // namespace kvtier
