// Attention of many query rows over rows that lie together, as libraries have it in one fused
// kernel: what a prefill and the repeat pass of scoring spend most of their time in. One library
// behind it is cuDNN (cuda/cuda_cudnn_attention.h); whatever a library does not take runs on the
// kernels of cuda/attention.h.
#ifndef KVTIER_CUDA_FUSED_ATTENTION_H_
#define KVTIER_CUDA_FUSED_ATTENTION_H_

#include <cstdint>

#include "absl/status/status.h"

namespace kvtier {

// All elements are bf16, in device memory. Query head h * group + g reads KV head h.
struct FusedAttentionParams {
  const void* q = nullptr;       // [rows, kv_heads * group, head_dim]
  const void* keys = nullptr;    // [kv_heads, key_rows, head_dim]; a head begins head_rows rows
  const void* values = nullptr;  // behind the one before it
  void* out = nullptr;           // As q.
  // Natural log of the sum of exponentials of a row's scaled logits, [kv_heads * group, rows];
  // null: not wanted.
  float* lse = nullptr;
  int64_t rows = 0;
  int64_t key_rows = 0;
  int64_t head_rows = 0;
  // Rows of each head that may be read with the weight zero: key_rows or more, finite. Where there
  // are more, a library may choose its kernel by them, so that one serves a cache while it fills.
  int64_t readable_rows = 0;
  int64_t kv_heads = 0;
  int64_t group = 0;
  int64_t head_dim = 0;
  // Row i sees keys 0 .. key_rows - rows + i, of which there is at least one; otherwise all keys.
  bool causal = false;
  int64_t window = 0;  // Causal only: each row sees the last `window` of its keys. 0: all of them.
  float scale = 0;
};

// Thread-safe; calls run in the order of the device's stream and do not wait for it.
class FusedAttention {
 public:
  virtual ~FusedAttention() = default;

  // Whether Run is worth a call: cheap, of the shape and the pointers' alignment (`out` and `lse`
  // need not be there yet).
  virtual bool Takes(const FusedAttentionParams& params) const = 0;

  // Rows that a cache of `rows` should have room for, so that caches of about one size share what a
  // library makes once per size; `rows` or more.
  virtual int64_t CacheRows(int64_t rows) const { return rows; }

  // UNIMPLEMENTED: the library has no kernel for this shape after all; nothing was launched.
  // RESOURCE_EXHAUSTED: no memory for its workspace. INTERNAL: the library failed.
  // REQUIRES: Takes(); Device::Enter() on this thread.
  virtual absl::Status Run(const FusedAttentionParams& params) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_FUSED_ATTENTION_H_
