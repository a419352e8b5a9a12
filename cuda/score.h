// The second pass of a score: with the normaliser of each query row known (cuda/attention.h without
// values is the first pass), the score of a key is the largest of its logits less the row's
// normaliser. No logits in memory, no order dependence: maxima of integers in the order of floats.
//
// Layout: queries [query_rows, kv_heads * group, head_dim], packed rows as in
// cuda/math/attention_plan.h; keys [kv_heads, capacity, head_dim]. Launch: blocks of 128 threads
// over (tiles of keys, KV heads, parts of the query rows).
#ifndef KVTIER_CUDA_SCORE_H_
#define KVTIER_CUDA_SCORE_H_

#include <cstdint>

#include "cuda/math/element.h"
#include "cuda/simt.h"

namespace kvtier {

struct ScoreMaxParams {
  const void* q = nullptr;
  Element q_type = Element::kF32;
  const void* keys = nullptr;
  Element key_type = Element::kBf16;
  int64_t capacity = 0;
  int64_t chunk_begin = 0;
  int64_t columns = 0;  // Rows [chunk_begin, chunk_begin + columns) are scored.
  int64_t query_rows = 0;
  int64_t group = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;
  const float* lse = nullptr;          // [kv_heads, query_rows * group], log2
  const float* row_offsets = nullptr;  // [query_rows] natural log; null: none
  const float* key_offsets = nullptr;  // [kv_heads * group, columns] natural log; null: none
  int64_t parts = 1;                   // Of the query rows; blocks in the third dimension.
  uint32_t* best = nullptr;            // [kv_heads, columns] order keys; zero before the launch
};
// REQUIRES: kv_heads and parts within a grid's limits (65535).
DeviceError LaunchScoreMax(const ScoreMaxParams& params, DeviceStream stream);

// out[h * out_stride + i] = the value of best[h * columns + i], at most 0 if `clamp`; NaN stays
// NaN.
struct ScoreValueParams {
  const uint32_t* best = nullptr;  // [kv_heads, columns]
  float* out = nullptr;
  int64_t kv_heads = 0;
  int64_t columns = 0;
  int64_t out_stride = 0;
  bool clamp = true;
};
DeviceError LaunchScoreValue(const ScoreValueParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_SCORE_H_
