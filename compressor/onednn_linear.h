// Linear layers through oneDNN's matmul. The one place that sees oneDNN.
#ifndef KVTIER_COMPRESSOR_ONEDNN_LINEAR_H_
#define KVTIER_COMPRESSOR_ONEDNN_LINEAR_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "compressor/scratch_pool.h"
#include "compressor/thread_pool.h"

namespace kvtier {

// y = x W^T in fp32. Weights are expanded to fp32 (exactly) and packed once, in slices of output
// columns that stay in a core's cache; tasks are (block of rows, slice), spread over `pool`.
// oneDNN's own threads are not used. The result of a row depends on nothing but that row.
// RESOURCE_EXHAUSTED: no memory. INTERNAL: oneDNN failed (named). `pool` and `scratch` outlive it.
absl::StatusOr<std::unique_ptr<LinearWeights>> PackOnednnLinear(const std::byte* weights,
                                                                DType dtype, int64_t out_features,
                                                                int64_t in_features,
                                                                ThreadPool& pool,
                                                                ScratchPool& scratch);

// INVALID_ARGUMENT: `weights` were not made by PackOnednnLinear. INTERNAL: oneDNN failed.
// REQUIRES: x [rows, in], y [rows, out], fp32, rows > 0.
absl::Status RunOnednnLinear(TensorView x, const LinearWeights& weights, TensorView y);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_ONEDNN_LINEAR_H_
