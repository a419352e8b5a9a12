// The ceiling of linear layers: oneDNN's own matrix product, without any code of ours around it.
#ifndef KVTIER_BENCH_ONEDNN_RATE_H_
#define KVTIER_BENCH_ONEDNN_RATE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvcache/geometry.h"

namespace kvtier::bench {

// GFLOP/s of [rows, in] x [in, out] with both factors of `dtype` (kF32 or kBf16), fp32 sums and
// result, weights packed beforehand as oneDNN likes, on its own threads (one per core): the median
// of `runs` calls. INTERNAL: oneDNN failed.
absl::StatusOr<double> OnednnRate(int64_t rows, int64_t in, int64_t out, DType dtype, int runs);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_ONEDNN_RATE_H_
