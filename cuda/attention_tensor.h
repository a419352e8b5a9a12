// Attention (cuda/attention.h) on tensor cores, for bf16 queries over rows that are bf16 or coded;
// decoded elements and weights are rounded to bf16. With values, or for the normaliser alone.
//
// Layout: as AttentionParams, planned with query_tile = TensorQueryTile(). Requirements: q and raw
// rows bf16; head_dim 64, 96 or 128; q and out aligned to 4 bytes, keys and values of raw spans to
// 16. Launch: a block of 128 threads per item; each warp has 16 query rows, or, where a group has
// no more (decoding), all four have the same 16 and a quarter of the keys each; keys and values go
// through shared memory, 64 at a time; then the merges of cuda/attention.h.
#ifndef KVTIER_CUDA_ATTENTION_TENSOR_H_
#define KVTIER_CUDA_ATTENTION_TENSOR_H_

#include <cstdint>

#include "cuda/attention.h"
#include "cuda/simt.h"

namespace kvtier {

// Whether these types, head_dim and pointers meet the requirements; the spans are the caller's to
// check (TensorSpanFits).
bool AttentionTensorFits(const AttentionParams& params);
bool TensorSpanFits(const KeySpan& span);

// Packed query rows of an item: 64, or 16 where there are no more.
int TensorQueryTile(const AttentionParams& params);

// kInvalidConfiguration where AttentionTensorFits() is false.
DeviceError LaunchAttentionTensor(const AttentionParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_ATTENTION_TENSOR_H_
