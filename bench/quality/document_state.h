// One document as the methods of kvtier-eval quality see it: the full cache, the attention votes of
// its prefill, and the scores of its recipes, each computed once.
#ifndef KVTIER_BENCH_QUALITY_DOCUMENT_STATE_H_
#define KVTIER_BENCH_QUALITY_DOCUMENT_STATE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/evaluation.h"
#include "compressor/attention_votes.h"
#include "compressor/model.h"
#include "compressor/ranking.h"
#include "compressor/recipe_scores.h"
#include "kvcache/recipe.h"

namespace kvtier {

// Not thread-safe: one per thread. Does not own the model.
class DocumentState {
 public:
  // Prefills `context`. `inputs` is what recipes kvzip+ and head need; not owned. Errors as
  // Evaluation::Create.
  static absl::StatusOr<std::unique_ptr<DocumentState>> Create(const Model& model,
                                                               const RecipeInputs& inputs,
                                                               std::vector<uint32_t> context);

  const Evaluation& evaluation() const { return *evaluation_; }
  const AttentionVotes& prefill_votes() const { return prefill_votes_; }
  // Differs between documents and nothing else: what random methods draw from.
  uint64_t seed() const { return seed_; }
  // Scored at the first call. The table lives as long as this. Errors as ScoreByRecipe.
  absl::StatusOr<const ScoreTable*> Scores(Scorer scorer);

 private:
  DocumentState() = default;
  std::vector<uint32_t> context_;
  AttentionVotes prefill_votes_;
  std::unique_ptr<Evaluation> evaluation_;
  uint64_t seed_ = 0;
  RecipeInputs inputs_;
  std::map<Scorer, ScoreTable> scores_;
};

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_DOCUMENT_STATE_H_
