// What cuDNN's attention is made for, and which calls share a plan. Without cuDNN's headers, so
// that the rules are tested anywhere.
//
// cuDNN makes one plan per shape, which takes much longer than its use; the layers of a pass share
// it. A run that grows from call to call (a cache that a prefill fills, piece by piece) would
// need one per piece: it is planned for all its readable rows, and the call says in device memory
// how many of them there are. Everything else is planned for the rows that it has.
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
// Plans that are kept. A context needs about ten: the pieces of its prefill, and the first, later
// and last chunk of its repeat pass over the context and over themselves.
inline constexpr size_t kCudnnPlansMax = 128;

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
