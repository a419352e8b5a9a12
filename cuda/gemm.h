// Products with weights, y = x W^T: by a library on GPUs, by the plain kernel anywhere.
#ifndef KVTIER_CUDA_GEMM_H_
#define KVTIER_CUDA_GEMM_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device.h"
#include "cuda/plain_gemm.h"

namespace kvtier {

// Thread-safe; calls run in the order of the device's stream.
class Gemm {
 public:
  virtual ~Gemm() = default;
  // Sums in fp32. No rows: nothing happens. Where params.workspace is smaller than it wants, it
  // takes memory from the device's pool. REQUIRES: Device::Enter() on this thread.
  virtual absl::Status Run(const GemmParams& params) = 0;
  // The workspace that Run() of such a product wants; 0 for many. Errors as Run().
  virtual absl::StatusOr<uint64_t> WorkspaceBytes(const GemmParams& params) = 0;
};

std::unique_ptr<Gemm> MakePlainGemm(std::shared_ptr<Device> device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_GEMM_H_
