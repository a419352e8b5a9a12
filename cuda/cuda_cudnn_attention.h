// Attention by cuDNN, through the graphs of its frontend's headers: bf16, causal from the bottom
// right, grouped heads, windows, normalisers. Loaded when a GPU is used, like cuBLASLt; a program
// built without cuDNN or the frontend links the same functions, which then say so.
#ifndef KVTIER_CUDA_CUDA_CUDNN_ATTENTION_H_
#define KVTIER_CUDA_CUDA_CUDNN_ATTENTION_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/cudnn_shape.h"
#include "cuda/device.h"
#include "cuda/fused_attention.h"

namespace kvtier {

// A shape is planned at its first call, which waits for that; plans are kept (kCudnnPlansMax), and
// so is that there is none, which is logged once a shape. Workspaces come from the device's pool.
//
// UNAVAILABLE: built without cuDNN, or the library or one of its functions is not there.
// FAILED_PRECONDITION: a version whose results are known to be wrong, or that is older than 9.6.
// INTERNAL: it did not start. REQUIRES: `device` is a GPU (cuda/cuda_device.h).
absl::StatusOr<std::unique_ptr<FusedAttention>> MakeCudnnAttention(std::shared_ptr<Device> device);

// Whether cuDNN accepts the operations of this shape for devices of a compute capability (90 is
// 9.0). Needs no device, which only a plan does. UNIMPLEMENTED: it does not, with its words;
// others as MakeCudnnAttention.
absl::Status CheckCudnnOperations(const CudnnShape& shape, int compute_capability);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_CUDNN_ATTENTION_H_
