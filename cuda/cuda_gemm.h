// Products by cuBLASLt: bf16 by bf16 and fp32 by fp32, sums in fp32 (no TF32). Other mixes of
// types, and shapes for which cuBLASLt has no algorithm, run on the plain kernel.
#ifndef KVTIER_CUDA_CUDA_GEMM_H_
#define KVTIER_CUDA_CUDA_GEMM_H_

#include <memory>

#include "absl/status/statusor.h"
#include "cuda/gemm.h"

namespace kvtier {

// UNAVAILABLE: cuBLASLt is not there (cuda/cuda_cublas_lt.h). INTERNAL: it did not start.
// RESOURCE_EXHAUSTED: no memory for its workspace (32 MiB).
// REQUIRES: `device` is a GPU (cuda/cuda_device.h).
absl::StatusOr<std::unique_ptr<Gemm>> MakeCudaGemm(std::shared_ptr<Device> device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_GEMM_H_
