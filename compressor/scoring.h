// KVzip's scoring pass: the model repeats the context chunk by chunk against its own cache, and
// each KV pair's score is the largest attention it receives (docs/recipes.md, "The definitions").
// Recipes and the scores that come from elsewhere: recipe_scores.h.
#ifndef KVTIER_COMPRESSOR_SCORING_H_
#define KVTIER_COMPRESSOR_SCORING_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "base/cancel_token.h"
#include "compressor/backend_scores.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/model.h"
#include "compressor/value_output_norms.h"

namespace kvtier {

// How a recipe departs from KVzip's scores.
struct ScoringRule {
  // The softmax sees, before the chunk, this many rows of the cache at most, none of them of the
  // chunk. Not set: the system prompt.
  std::optional<int64_t> sink_rows_max = std::nullopt;
  // The softmax sees the whole cache.
  bool full_softmax = false;
  // KVzip+: each weight is divided by the norm of its row's attention input and multiplied by the
  // norm of what the key's value writes. Null: not.
  const ValueOutputNorms* norms = nullptr;
  // Tokens that the scores have before the context's and that this pass leaves unspecified: of a
  // system prompt that is ranked, too.
  uint64_t leading_tokens = 0;
};

// `cache` holds system_tokens + context rows and comes out bit-identical. The scores stay with the
// backend; their layers are the scored ones, their tokens rule.leading_tokens and the context's.
// `on_chunk` (may be empty) hears how many of the context's tokens have been given to the backend
// to score: where that computes by itself, chunks are enqueued ahead of it, nothing waits between
// them (save for rule.norms), and all of them have been computed when this returns.
// REQUIRES: scratch.rows_max() >= model.profile().RepeatRowsMax(context.size()).
// INVALID_ARGUMENT: a score that is NaN or infinite (CheckFinite: the first one, when all chunks
// are scored); positions past the model's limit.
// CANCELLED: `cancel` fired between chunks. RESOURCE_EXHAUSTED: no memory for the repeat rows.
absl::StatusOr<std::unique_ptr<BackendScores>> ScoreContext(
    const Model& model, std::span<const uint32_t> context, int64_t system_tokens,
    const DenseCache& cache, ForwardScratch& scratch, const CancelToken& cancel,
    const std::function<void(uint64_t tokens_done)>& on_chunk, const ScoringRule& rule = {});

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SCORING_H_
