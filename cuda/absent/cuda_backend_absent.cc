// cuda/cuda_backend.h in programs that are built without CUDA.
#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int ordinal, DType /*activations*/) {
  return absl::UnavailableError(
      absl::StrCat("cuda:", ordinal, ": this program was built without CUDA"));
}

}  // namespace kvtier
