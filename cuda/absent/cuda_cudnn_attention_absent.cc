// Of programs built without cuDNN or the headers of its frontend.
#include "cuda/cuda_cudnn_attention.h"

namespace kvtier {
namespace {

absl::Status Absent() {
  return absl::UnavailableError(
      "built without cuDNN's attention: scripts/install-deps.sh --cuda fetches its frontend");
}

}  // namespace

absl::StatusOr<std::unique_ptr<FusedAttention>> MakeCudnnAttention(
    std::shared_ptr<Device> /*device*/) {
  return Absent();
}

absl::Status CheckCudnnOperations(const CudnnShape& /*shape*/, int /*compute_capability*/) {
  return Absent();
}

}  // namespace kvtier
