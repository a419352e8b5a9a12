#include "compressor/recipe_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "compressor/scoring.h"

namespace kvtier {
namespace {

// The same score for every token of a head.
absl::StatusOr<std::unique_ptr<BackendScores>> BroadcastHeadScores(const HeadScores& heads,
                                                                   Backend& backend,
                                                                   uint64_t tokens) {
  KVTIER_ASSIGN_OR_RETURN(
      std::unique_ptr<BackendScores> scores,
      backend.MakeScores({.layers = heads.layers, .kv_heads = heads.kv_heads, .tokens = tokens}));
  KVTIER_RETURN_IF_ERROR(scores->Fill(0, tokens, heads.log_scores));
  return scores;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BackendScores>> ScoreByRecipe(
    const Recipe& recipe, const RecipeInputs& inputs, const Model& model,
    std::span<const uint32_t> context, int64_t system_tokens, const DenseCache& cache,
    ForwardScratch& scratch, const CancelToken& cancel,
    const std::function<void(uint64_t tokens_done)>& on_chunk) {
  const bool ranks_system_prompt = !ProtectsSystemPrompt(recipe.selection());
  ScoringRule rule;
  rule.leading_tokens = ranks_system_prompt ? static_cast<uint64_t>(system_tokens) : 0;
  switch (recipe.scorer) {
    case Scorer::kKvzip:
    case Scorer::kUniform:  // KVzip's scores, selected otherwise.
      break;
    case Scorer::kKvpress:
      rule.sink_rows_max = kKvpressSinks;
      break;
    case Scorer::kFullSoftmax:
      rule.full_softmax = true;
      break;
    case Scorer::kKvzipPlus: {
      if (inputs.norms == nullptr) {
        return absl::InvalidArgumentError("recipe kvzip+: no norms of the output projection");
      }
      KVTIER_ASSIGN_OR_RETURN(rule.norms, inputs.norms->Get(cancel));
      break;
    }
    case Scorer::kHead:
      if (inputs.head_scores == nullptr) {
        return absl::InvalidArgumentError("recipe head: no head scores");
      }
      KVTIER_RETURN_IF_ERROR(inputs.head_scores->CheckFits(model, cache.geometry()));
      if (on_chunk) on_chunk(context.size());
      return BroadcastHeadScores(*inputs.head_scores, model.backend(), context.size());
  }
  KVTIER_ASSIGN_OR_RETURN(
      std::unique_ptr<BackendScores> scores,
      ScoreContext(model, context, system_tokens, cache, scratch, cancel, on_chunk, rule));
  if (ranks_system_prompt) {
    KVTIER_RETURN_IF_ERROR(RankSystemPromptToo(*scores, rule.leading_tokens));
  }
  return scores;
}

uint64_t EstimateScoringBytes(const Recipe& recipe, const Model& model, const Geometry& geometry,
                              uint64_t system_tokens, uint64_t context_tokens) {
  const ModelConfig& config = model.config();
  const uint64_t table =
      geometry.scored_pairs(RankedTokens(recipe.selection(), system_tokens, context_tokens)) *
      sizeof(float);
  if (!recipe.repeats_context()) return table;
  const uint64_t repeat_rows = model.profile().RepeatRowsMax(context_tokens);
  uint64_t bytes =
      table + DenseCache::EstimateBytes(
                  geometry, model.backend().CacheRows(static_cast<int64_t>(repeat_rows)));
  if (recipe.scorer == Scorer::kKvzipPlus) {
    const uint64_t chunk = std::min<uint64_t>(model.profile().chunk_tokens, context_tokens);
    bytes +=
        ValueOutputNorms::EstimateBytes(config) +
        (uint64_t(config.hidden) * repeat_rows + uint64_t(config.q_heads) * chunk) * sizeof(float);
  }
  return bytes;
}

absl::Status RankSystemPromptToo(BackendScores& scores, uint64_t system_tokens) {
  KVTIER_ASSIGN_OR_RETURN(const ScoreVerdict verdict, scores.Inspect(system_tokens));
  const auto fill = [&scores](uint64_t end, float score) {
    return scores.Fill(0, end, std::vector<float>(scores.shape().rows(), score));
  };
  KVTIER_RETURN_IF_ERROR(fill(system_tokens, -std::numeric_limits<float>::infinity()));
  return fill(std::min<uint64_t>(kKvpressSinks, scores.shape().tokens),
              std::log1p(std::exp(verdict.best)));
}

}  // namespace kvtier
