// The attention over two sets of keys from those over each: the weighted sum of both outputs, by
// their normalisers.
//
// Layout: outputs bf16 [rows, heads, head_dim]; normalisers, natural logs, [heads, rows].
// Requirements: head_dim a multiple of 8, outputs aligned to 16 bytes; each row has a key in at
// least one of the sets. Launch: threads stride over pieces of eight elements.
#ifndef KVTIER_CUDA_MERGE_ATTENTION_H_
#define KVTIER_CUDA_MERGE_ATTENTION_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

struct MergeAttentionParams {
  const void* part = nullptr;  // One output,
  const float* part_lse = nullptr;
  void* out = nullptr;  // and the other, which becomes the whole.
  const float* out_lse = nullptr;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
};
DeviceError LaunchMergeAttention(const MergeAttentionParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_MERGE_ATTENTION_H_
