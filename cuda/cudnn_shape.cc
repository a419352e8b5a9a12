#include "cuda/cudnn_shape.h"

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

CudnnShape CudnnShapeOf(const FusedAttentionParams& params) {
  // Rows before the queries' own: a run that has grown, and may grow on.
  const bool grows = params.causal && params.key_rows > params.rows;
  const bool lengths = grows && params.readable_rows > params.key_rows;
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
