// One pass of the transformer over new tokens, given what they may look at. The three users differ
// only in that: prefill looks at the cache it grows, the repeat pass looks at the finished cache
// and keeps nothing, decoding looks at a ragged cache and its own tail.
#ifndef KVTIER_COMPRESSOR_FORWARD_H_
#define KVTIER_COMPRESSOR_FORWARD_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "compressor/dense_cache.h"
#include "compressor/model.h"
#include "compressor/token_ops.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// Scratch activations for at most `rows_max` rows. Reused between calls, so that a decode step
// allocates no backend memory. One per concurrent forward pass.
class ForwardScratch {
 public:
  static absl::StatusOr<ForwardScratch> Create(const Model& model, int64_t rows_max);
  static uint64_t EstimateBytes(const ModelConfig& config, DType activation, int64_t rows_max);
  int64_t rows_max() const { return rows_max_; }
  Tensor x, normed, q, k, v, attended;  // [rows_max, ...]
  Tensor gate, up;                      // [some of them, intermediate]
  Tensor logits;                        // [1, vocabulary]

 private:
  int64_t rows_max_ = 0;
};

// What a pass looks at and leaves behind.
struct ForwardPlan {
  // Rows that every new token sees, per layer: [layers][kv_heads] spans. Null: none.
  std::function<const HeadSpans*(int64_t layer)> spans = nullptr;
  int64_t readable_span_rows = 0;  // As AttentionArgs.
  bool odd_rows = false;           // As AttentionArgs.
  // New keys and values are appended here at row tail->length(), after `first_position`'s RoPE, and
  // seen causally together with the rows before them. Its length is advanced at the end of the
  // pass.
  DenseCache* tail = nullptr;
  int64_t first_position = 0;
  // Called per layer, before on_queries, with the input of the attention module: the residual
  // stream after the layer's first norm (valid during the call). Null: not wanted.
  std::function<absl::Status(int64_t layer, TensorView input)> on_attention_input = nullptr;
  // Called per layer with the queries after RoPE (valid during the call); tail already holds the
  // new keys. Null: not wanted. The repeat pass scores here.
  std::function<absl::Status(int64_t layer, TensorView q, KvLayerView tail)> on_queries = nullptr;
  // Stop after the last layer's queries: its attention and MLP are not needed (repeat pass).
  bool stop_after_last_queries = false;
};

// Runs `ids` through the model. With `logits` not empty, writes logits of the last row to it
// ([vocabulary] fp32, host); with `all_logits` not null, of every row ([rows * vocabulary]).
// INVALID_ARGUMENT: an id outside the vocabulary, positions past the model's limit, too many rows
// for scratch or tail.
absl::Status Forward(const Model& model, std::span<const uint32_t> ids, const ForwardPlan& plan,
                     ForwardScratch& scratch, std::span<float> logits,
                     std::vector<float>* all_logits = nullptr);

// The same pass over the one token that `step` stands at, whose logits are left in scratch.logits:
// launches only, the same at each call. REQUIRES: a token, a position and a row of the tail that
// the model has.
absl::Status ForwardStep(const Model& model, TokenOps& step, ForwardScratch& scratch);

// Appends `ids` to `cache` (prefill) in pieces of at most scratch.rows_max() rows.
absl::Status Prefill(const Model& model, std::span<const uint32_t> ids, DenseCache& cache,
                     ForwardScratch& scratch,
                     const std::function<absl::Status(int64_t done)>& on_piece);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_FORWARD_H_
