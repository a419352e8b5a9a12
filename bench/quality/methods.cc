#include "bench/quality/methods.h"

#include <cstdint>

#include "base/status_macros.h"
#include "compressor/baselines.h"
#include "compressor/rule_ranking.h"
#include "kvcache/recipe.h"

namespace kvtier {
namespace {

absl::StatusOr<BandAssignment> Rank(const DocumentState& document, const ScoreTable& scores,
                                    const BandEdges& edges) {
  return AssignBands(scores, edges,
                     /*first_token_first=*/document.evaluation().system_tokens() == 0);
}

template <Scorer kScorer>
absl::StatusOr<BandAssignment> ByRecipe(DocumentState& document, const AttentionVotes*,
                                        const BandEdges& edges) {
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable* scores, document.Scores(kScorer));
  Recipe recipe;
  recipe.scorer = kScorer;
  return AssignBandsByRule(*scores, edges, recipe.selection(),
                           /*system_prompt=*/document.evaluation().system_tokens() > 0);
}

absl::StatusOr<BandAssignment> SnapKv(DocumentState& document, const AttentionVotes* question,
                                      const BandEdges& edges) {
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, SnapKvScores(*question));
  return Rank(document, scores, edges);
}

absl::StatusOr<BandAssignment> PyramidKv(DocumentState& document, const AttentionVotes* question,
                                         const BandEdges& edges) {
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, PyramidKvScores(*question));
  return Rank(document, scores, edges);
}

absl::StatusOr<BandAssignment> H2o(DocumentState& document, const AttentionVotes* question,
                                   const BandEdges& edges) {
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, H2oScores(document.prefill_votes(), *question));
  return Rank(document, scores, edges);
}

absl::StatusOr<BandAssignment> SinkRecent(DocumentState& document, const AttentionVotes*,
                                          const BandEdges& edges) {
  const Evaluation& evaluation = document.evaluation();
  return Rank(document,
              SinkRecentScores(evaluation.cache().geometry(), evaluation.system_tokens(),
                               evaluation.context_tokens()),
              edges);
}

absl::StatusOr<BandAssignment> Random(DocumentState& document, const AttentionVotes*,
                                      const BandEdges& edges) {
  return Rank(document, document.evaluation().RandomScores(document.seed()), edges);
}

constexpr double kBaselineMin = 0.05;

constexpr Method kMethods[] = {
    {"kvzip", "KVzip", false, 0, ByRecipe<Scorer::kKvzip>},
    {"kvzip+", "KVzip+", false, 0, ByRecipe<Scorer::kKvzipPlus>},
    {"uniform", "KVzip, uniform", false, kBaselineMin, ByRecipe<Scorer::kUniform>},
    {"head", "KVzip, whole heads", false, kBaselineMin, ByRecipe<Scorer::kHead>},
    {"snapkv", "SnapKV", true, kBaselineMin, SnapKv},
    {"pyramidkv", "PyramidKV", true, kBaselineMin, PyramidKv},
    {"h2o", "H2O", true, kBaselineMin, H2o},
    {"sink_recent", "Sinks + recent", false, kBaselineMin, SinkRecent},
    {"random", "Random", false, kBaselineMin, Random},
};

}  // namespace

std::span<const Method> AllMethods() { return kMethods; }

}  // namespace kvtier
