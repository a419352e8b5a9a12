#include "bench/quality/document_state.h"

#include <utility>

#include "base/status_macros.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<DocumentState>> DocumentState::Create(
    const Model& model, const RecipeInputs& inputs, std::vector<uint32_t> context) {
  auto state = std::unique_ptr<DocumentState>(new DocumentState());
  state->inputs_ = inputs;
  state->context_ = std::move(context);
  for (uint32_t id : state->context_) state->seed_ = state->seed_ * 1'099'511'628'211u + id;
  KVTIER_ASSIGN_OR_RETURN(state->evaluation_,
                          Evaluation::Create(model, state->context_, &state->prefill_votes_));
  return state;
}

absl::StatusOr<const ScoreTable*> DocumentState::Scores(Scorer scorer) {
  // Recipe uniform is KVzip's scores, selected otherwise.
  if (scorer == Scorer::kUniform) scorer = Scorer::kKvzip;
  const auto known = scores_.find(scorer);
  if (known != scores_.end()) return &known->second;
  Recipe recipe;
  recipe.scorer = scorer;
  KVTIER_ASSIGN_OR_RETURN(ScoreTable scores, evaluation_->RecipeScores(recipe, inputs_));
  return &(scores_[scorer] = std::move(scores));
}

}  // namespace kvtier
