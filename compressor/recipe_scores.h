// Scores by recipe (docs/recipes.md): what each one changes in the scoring pass, and what it makes
// of its result. Plain functions of their arguments: any thread may call.
#ifndef KVTIER_COMPRESSOR_RECIPE_SCORES_H_
#define KVTIER_COMPRESSOR_RECIPE_SCORES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "base/cancel_token.h"
#include "compressor/backend_scores.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/head_scores.h"
#include "compressor/model.h"
#include "compressor/value_output_norms.h"
#include "kvcache/recipe.h"

namespace kvtier {

// What some recipes need besides the model. Both are of that model; neither is owned.
struct RecipeInputs {
  const HeadScores* head_scores = nullptr;      // Recipe head.
  const LazyValueOutputNorms* norms = nullptr;  // Recipe kvzip+.
};

// The scores that `recipe` ranks: [scored layers, kv_heads, RankedTokens], where the backend keeps
// them. Arguments and errors as ScoreContext. INVALID_ARGUMENT also: an input that the recipe needs
// is missing.
// Recipe head runs no pass: it reads neither cache nor scratch and reports all tokens at once.
absl::StatusOr<std::unique_ptr<BackendScores>> ScoreByRecipe(
    const Recipe& recipe, const RecipeInputs& inputs, const Model& model,
    std::span<const uint32_t> context, int64_t system_tokens, const DenseCache& cache,
    ForwardScratch& scratch, const CancelToken& cancel,
    const std::function<void(uint64_t tokens_done)>& on_chunk);

// What ScoreByRecipe allocates, the norms of recipe kvzip+ included.
uint64_t EstimateScoringBytes(const Recipe& recipe, const Model& model, const Geometry& geometry,
                              uint64_t system_tokens, uint64_t context_tokens);

// The scores of recipe kvpress from those of the context, which follow `system_tokens` others in
// `scores`: the system prompt is ranked, too. Its tokens score 0 (log score -inf), but the first
// four positions of all score 1 more than the best. Waits for the best one.
absl::Status RankSystemPromptToo(BackendScores& scores, uint64_t system_tokens);

inline constexpr int64_t kKvpressSinks = 4;

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_RECIPE_SCORES_H_
