#include "cuda/cudnn_shape.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/strings/str_cat.h"

namespace kvtier {
namespace {

// What the library's kernels count elements with.
constexpr int64_t kElementsMax = std::numeric_limits<int32_t>::max();

bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Elements of a tensor of `rows` rows, without overflow.
bool Fits(int64_t heads, int64_t rows, int64_t head_dim) {
  return rows <= kElementsMax / (heads * head_dim);
}

}  // namespace

std::string CudnnShape::ToString() const {
  return absl::StrCat(rows, " rows of ", kv_heads, " x ", group, " heads of ", head_dim, " over ",
                      lengths ? "up to " : "", key_rows, " keys, ", head_rows, " a head",
                      causal ? ", causal" : "", window > 0 ? absl::StrCat(", window ", window) : "",
                      lse ? ", with normalisers" : "");
}

int64_t CudnnCacheRows(int64_t rows) {
  if (rows <= 0) return rows;
  const auto eighth = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows)) / 8);
  const int64_t step = std::max<int64_t>(64, eighth);
  return (rows + step - 1) / step * step;
}

CudnnShape CudnnShapeOf(const FusedAttentionParams& params) {
  // Queries among themselves are as many as their keys, whatever lies behind.
  const bool square = params.causal && params.key_rows == params.rows;
  const bool lengths = !square && params.readable_rows > params.key_rows;
  return {.rows = params.rows,
          .key_rows = lengths ? params.readable_rows : params.key_rows,
          .head_rows = params.head_rows,
          .kv_heads = params.kv_heads,
          .group = params.group,
          .head_dim = params.head_dim,
          .window = params.window,
          .scale = params.scale,
          .causal = params.causal,
          .lse = params.lse != nullptr,
          .lengths = lengths};
}

bool CudnnTakes(const FusedAttentionParams& params) {
  return params.rows >= kCudnnQueryRowsMin && params.head_dim % 8 == 0 &&
         params.head_dim <= kCudnnHeadDimMax &&
         Fits(params.kv_heads * params.group, params.rows, params.head_dim) &&
         Fits(params.kv_heads, params.head_rows, params.head_dim) && Aligned(params.q) &&
         Aligned(params.keys) && Aligned(params.values) && Aligned(params.out);
}

}  // namespace kvtier
