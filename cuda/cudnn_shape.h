// What cuDNN's attention is made for, and which calls share a plan. Without cuDNN's headers, so
// that the rules are tested anywhere.
//
// cuDNN makes one plan per shape, which takes much longer than its use; the layers of a pass share
// it. Keys that have readable rows behind them (the cache of a context, which a prefill fills piece
// by piece and the repeat pass reads as a whole) would need one per piece and per length of a
// context: they are planned for all readable rows, and the call says in device memory how many of
// them there are. Those are rounded up (CudnnCacheRows), so that contexts of about one length share
// their plans. Everything else is planned for the rows that it has.
#ifndef KVTIER_CUDA_CUDNN_SHAPE_H_
#define KVTIER_CUDA_CUDNN_SHAPE_H_

#include <compare>
#include <cstdint>
#include <string>

#include "cuda/fused_attention.h"

namespace kvtier {

// Fewer query rows are better off with the keys shared out to many blocks (cuda/attention.h).
inline constexpr int64_t kCudnnQueryRowsMin = 64;
inline constexpr int64_t kCudnnHeadDimMax = 256;
// Plans that are kept; the one that was used longest ago goes first. For each capacity of a cache
// there are about twenty at the most: the first piece of a prefill, later ones, the first and the
// later chunks of a repeat pass, and for each of them the powers of two that odd numbers of rows
// are cut into (cuda/fused_calls.h); another dozen for the repeat rows among themselves.
inline constexpr size_t kCudnnPlansMax = 256;

// Rows of the cache that a context of `rows` gets: a multiple of an eighth of the largest power of
// two that is not above them, and of 64. At most an eighth more, or 63 rows; eight capacities for
// every doubling of the length.
int64_t CudnnCacheRows(int64_t rows);

// The key of a plan.
struct CudnnShape {
  int64_t rows = 0;
  int64_t key_rows = 0;  // Planned for.
  int64_t head_rows = 0;
  int64_t kv_heads = 0;
  int64_t group = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
  float scale = 0;
  bool causal = false;
  bool lse = false;
  bool lengths = false;  // Rows and keys that there are come with the call.

  auto operator<=>(const CudnnShape&) const = default;
  std::string ToString() const;
};

CudnnShape CudnnShapeOf(const FusedAttentionParams& params);

// FusedAttention::Takes() of cuDNN: enough rows, a head_dim that is a multiple of 8 and at most
// kCudnnHeadDimMax, pointers aligned to 16 bytes, tensors of fewer than 2^31 elements.
bool CudnnTakes(const FusedAttentionParams& params);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDNN_SHAPE_H_
