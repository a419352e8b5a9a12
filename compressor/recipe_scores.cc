#include "compressor/recipe_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "compressor/scoring.h"

namespace kvtier {

absl::StatusOr<ScoreTable> ScoreByRecipe(
    const Recipe& recipe, const RecipeInputs& inputs, const Model& model,
    std::span<const uint32_t> context, int64_t system_tokens, const DenseCache& cache,
    ForwardScratch& scratch, const CancelToken& cancel,
    const std::function<void(uint64_t tokens_done)>& on_chunk) {
  ScoringRule rule;
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
      return inputs.head_scores->Broadcast(context.size());
  }
  KVTIER_ASSIGN_OR_RETURN(ScoreTable scores, ScoreContext(model, context, system_tokens, cache,
                                                          scratch, cancel, on_chunk, rule));
  if (ProtectsSystemPrompt(recipe.selection())) return scores;
  return RankSystemPromptToo(scores, static_cast<uint64_t>(system_tokens));
}

uint64_t EstimateScoringBytes(const Recipe& recipe, const Model& model, const Geometry& geometry,
                              uint64_t system_tokens, uint64_t context_tokens) {
  const ModelConfig& config = model.config();
  const uint64_t table = geometry.scored_pairs(context_tokens) * sizeof(float);
  if (!recipe.repeats_context()) return table;
  const uint64_t repeat_rows = model.profile().RepeatRowsMax(context_tokens);
  uint64_t bytes = table + DenseCache::EstimateBytes(geometry, static_cast<int64_t>(repeat_rows));
  if (recipe.scorer == Scorer::kKvpress) {  // Two tables for a moment.
    bytes += geometry.scored_pairs(system_tokens + context_tokens) * sizeof(float);
  }
  if (recipe.scorer == Scorer::kKvzipPlus) {
    const uint64_t chunk = std::min<uint64_t>(model.profile().chunk_tokens, context_tokens);
    bytes +=
        ValueOutputNorms::EstimateBytes(config) +
        (uint64_t(config.hidden) * repeat_rows + uint64_t(config.q_heads) * chunk) * sizeof(float);
  }
  return bytes;
}

ScoreTable RankSystemPromptToo(const ScoreTable& context_scores, uint64_t system_tokens) {
  const uint64_t tokens = system_tokens + context_scores.tokens;
  ScoreTable all = ScoreTable::Create(context_scores.layers, context_scores.kv_heads, tokens);
  if (tokens == 0 || all.pairs() == 0) return all;
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  const float best =
      context_scores.log_scores.empty()
          ? kMinusInfinity
          : *std::max_element(context_scores.log_scores.begin(), context_scores.log_scores.end());
  const float first = std::log1p(std::exp(best));
  const uint64_t firsts = std::min<uint64_t>(kKvpressSinks, tokens);
  for (uint32_t layer = 0; layer < all.layers; ++layer) {
    for (uint32_t head = 0; head < all.kv_heads; ++head) {
      float* to = &all.at(layer, head, 0);
      std::fill_n(to, system_tokens, kMinusInfinity);
      if (context_scores.tokens > 0) {
        std::copy_n(
            &context_scores
                 .log_scores[(uint64_t{layer} * all.kv_heads + head) * context_scores.tokens],
            context_scores.tokens, to + system_tokens);
      }
      std::fill_n(to, firsts, first);
    }
  }
  return all;
}

}  // namespace kvtier
