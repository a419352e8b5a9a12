// Linear layers through oneDNN's matmul. The one place that sees oneDNN.
#ifndef KVTIER_COMPRESSOR_ONEDNN_LINEAR_H_
#define KVTIER_COMPRESSOR_ONEDNN_LINEAR_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "compressor/scratch_pool.h"
#include "compressor/thread_pool.h"

namespace kvtier {

// Whether oneDNN has bf16 products with fp32 sums on this machine (AVX512-BF16; not emulated, and
// not switched off by ONEDNN_MAX_CPU_ISA). Without them PackOnednnLinear must be asked for fp32.
bool OnednnHasBf16Products();

// y = x W^T with sums in fp32. `compute` is the dtype of both factors:
//   kF32   weights are expanded to fp32 (exactly); x is fp32
//   kBf16  weights stay bf16, in half of the memory; x is bf16, rounded by the caller
// Weights are packed once, in slices of output columns that stay in a core's cache; tasks are
// (block of rows, slice), spread over `pool`. oneDNN's own threads are not used. The result of a
// row depends on nothing but that row.
// RESOURCE_EXHAUSTED: no memory. INTERNAL: oneDNN failed (named). `pool` and `scratch` outlive it.
// REQUIRES: `compute` is kF32, or kBf16 with weights of bf16 where OnednnHasBf16Products().
absl::StatusOr<std::unique_ptr<LinearWeights>> PackOnednnLinear(
    const std::byte* weights, DType dtype, DType compute, int64_t out_features, int64_t in_features,
    ThreadPool& pool, ScratchPool& scratch);

// The weights as products use them, [out, in] row-major. INVALID_ARGUMENT: `weights` were not made
// by PackOnednnLinear. RESOURCE_EXHAUSTED: no memory. INTERNAL: oneDNN failed.
// REQUIRES: to.size() == out * in.
absl::Status ReadOnednnLinear(const LinearWeights& weights, std::span<float> to);

// What RunOnednnLinear expects of x, kF32 or kBf16. INVALID_ARGUMENT: `weights` were not made by
// PackOnednnLinear.
absl::StatusOr<DType> OnednnInputDtype(const LinearWeights& weights);

// INVALID_ARGUMENT: `weights` were not made by PackOnednnLinear. RESOURCE_EXHAUSTED: no memory for
// scratch. INTERNAL: oneDNN failed.
// REQUIRES: x [rows, in] of OnednnInputDtype(weights), y [rows, out] of fp32, rows > 0.
absl::Status RunOnednnLinear(TensorView x, const LinearWeights& weights, TensorView y);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_ONEDNN_LINEAR_H_
