// Attention over the spans of each KV head, of any codec, causal at the end, in a window or not;
// or only its normaliser, which the score needs. Any head_dim up to kAttentionHeadDimMax.
//
// Layout: queries [query_rows, kv_heads * group, head_dim]; a head's keys are its spans one after
// the other (KeySpan::begin counts the rows before it), the last `query_rows` of them the queries'
// own. Requirements: pointers aligned to their elements. Launch: a block of 128 threads per item of
// the plan (cuda/math/attention_plan.h), then one per merge. Sums in fp32, exponentials in base 2.
//
// This is the kernel for every shape, and the twin of cuda/attention_tensor.h: fp32 products
// without tensor cores.
#ifndef KVTIER_CUDA_ATTENTION_H_
#define KVTIER_CUDA_ATTENTION_H_

#include <cstdint>

#include "cuda/math/attention_plan.h"
#include "cuda/math/row_decode.h"
#include "cuda/simt.h"

namespace kvtier {

inline constexpr int64_t kAttentionHeadDimMax = 512;

// Rows that lie together: a RowSpan (kvcache/ragged_view.h) in device memory.
struct KeySpan {
  const void* keys = nullptr;
  const void* values = nullptr;
  const void* key_scales = nullptr;  // Null for kRaw.
  const void* value_scales = nullptr;
  int64_t begin = 0;  // Rows of the head before these.
  int64_t rows = 0;   // Above 0.
  RowCode code = RowCode::kRaw;
};

struct AttentionParams {
  const void* q = nullptr;
  Element q_type = Element::kF32;
  Element kv_type = Element::kBf16;     // Of raw rows.
  const KeySpan* spans = nullptr;       // Of all heads, in order.
  const int64_t* span_begin = nullptr;  // [kv_heads + 1] into spans
  const int64_t* head_rows = nullptr;   // [kv_heads] rows of the spans
  const AttentionItem* items = nullptr;
  const AttentionMerge* merges = nullptr;
  int64_t item_count = 0;
  int64_t merge_count = 0;
  // A tail behind the spans of each head, which head_rows does not count. How many of its rows came
  // before the queries' own is read when the launch runs, so that launch and plan serve a range of
  // lengths. Null: the spans are all.
  const int64_t* tail_row = nullptr;  // Device memory; one number.
  const void* tail_keys = nullptr;    // [kv_heads, tail_capacity, head_dim] of kv_type
  const void* tail_values = nullptr;
  int64_t tail_capacity = 0;
  int64_t query_rows = 0;
  int64_t group = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
  float scale = 0;
  float* part_out = nullptr;  // [slots, query tile, head_dim]; null without `out`
  float* part_lse = nullptr;  // [slots, query tile]
  void* out = nullptr;        // As q; null: only the normaliser, and values are not read.
  float* lse = nullptr;       // [kv_heads, query_rows * group] log2 of the sum; null: not wanted
};
// The plan's query_tile is kQueryTile.
DeviceError LaunchAttention(const AttentionParams& params, DeviceStream stream);

// The merges of a plan alone, for kernels that make parts of their own.
DeviceError LaunchAttentionMerge(const AttentionParams& params, int query_tile,
                                 DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_ATTENTION_H_
