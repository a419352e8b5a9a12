// How much attention each context token receives: the raw material of the eviction methods that
// KVzip is compared with (compressor/baselines.h).
//
// The weight of one query row is its softmax over all keys that it sees. For every scored layer and
// KV head the weights on context tokens are summed over rows and over the query group. Memory grows
// with the context, not with its square: rows are taken kVoteRows at a time.
// Plain functions: any thread may call, on memory of its own. The backend is only downloaded from.
#ifndef KVTIER_COMPRESSOR_ATTENTION_VOTES_H_
#define KVTIER_COMPRESSOR_ATTENTION_VOTES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/model.h"

namespace kvtier {

struct AttentionVotes {
  uint32_t layers = 0;  // Scored ones, in model order, as in ScoreTable.
  uint32_t kv_heads = 0;
  uint64_t tokens = 0;       // Of the context.
  std::vector<double> sums;  // [layers, kv_heads, tokens]

  std::span<const double> head(uint32_t layer, uint32_t head) const {
    return std::span(sums).subspan((uint64_t{layer} * kv_heads + head) * tokens, tokens);
  }
};

// Votes of a question's rows (its tokens as the decoder gets them, profile.WrapQuery) on the
// context in `cache`, which holds system prompt and context and does not change.
// REQUIRES: scratch.rows_max() >= question.size().
// INVALID_ARGUMENT: an empty question; as Forward. RESOURCE_EXHAUSTED: no memory.
absl::StatusOr<AttentionVotes> QuestionVotes(const Model& model, const DenseCache& cache,
                                             int64_t system_tokens,
                                             std::span<const uint32_t> question,
                                             ForwardScratch& scratch);

// Prefills the empty `cache` with `ids` (system prompt, then context), exactly as Prefill does, and
// returns the votes that the rows cast on the context while they are appended.
// INVALID_ARGUMENT: the cache is not empty, no context; as Forward.
absl::StatusOr<AttentionVotes> PrefillWithVotes(const Model& model, std::span<const uint32_t> ids,
                                                int64_t system_tokens, DenseCache& cache,
                                                ForwardScratch& scratch);

// Query rows whose logits are held at once.
inline constexpr int64_t kVoteRows = 64;

// One layer's keys: all rows of `before`, then rows [0, tail_rows) of `tail`, causally: of the
// query rows, row i sees tail rows 0 .. tail_rows - rows + i.
struct VoteKeys {
  KvLayerView before = {};  // May be empty (before_rows 0).
  int64_t before_rows = 0;
  KvLayerView tail = {};
  int64_t tail_rows = 0;
};

// Adds the weights of query rows `q` ([rows, q_heads * head_dim] after RoPE, query head
// h * group + g reads KV head h) to `sums` ([kv_heads, before_rows + tail_rows]).
// INVALID_ARGUMENT: shapes that do not fit.
absl::Status AddVotes(Backend& backend, TensorView q, const VoteKeys& keys, float scale,
                      std::span<double> sums);
// The plain twin: one dot product at a time, in double.
absl::Status AddVotesReference(Backend& backend, TensorView q, const VoteKeys& keys, float scale,
                               std::span<double> sums);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_ATTENTION_VOTES_H_
