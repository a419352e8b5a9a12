// Backend (compressor/backend.h) over a Device: launches the kernels of this folder, products by a
// Gemm. What it does is the same on a GPU and on the emulated device.
#ifndef KVTIER_CUDA_DEVICE_BACKEND_H_
#define KVTIER_CUDA_DEVICE_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "cuda/device.h"
#include "cuda/fused_attention.h"
#include "cuda/gemm.h"

namespace kvtier {

// Activations are bf16, for speed, or fp32, for agreement with the CPU to the last digits. Weights
// are kept in the same type; a table shared as weights stays what it is.
//
// Operations run in the order of the device's stream and do not wait, except where the host gets
// something: Download, ReadLinear, GatherRows, and scores that are read (cuda/device_scores.h).
// Scratch and tables of a call are taken from the device's pool and given back in stream order.
//
// `fused` computes the attention that it takes; null: all runs on the kernels of this folder. With
// one, new tensors hold zeros, because it may read rows of a cache that nobody has written yet
// (FusedAttentionParams::readable_rows).
//
// INVALID_ARGUMENT: f16 activations.
absl::StatusOr<std::unique_ptr<Backend>> MakeDeviceBackend(
    std::shared_ptr<Device> device, std::unique_ptr<Gemm> gemm, DType activations,
    std::unique_ptr<FusedAttention> fused = nullptr);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_BACKEND_H_
