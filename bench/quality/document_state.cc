#include "bench/quality/document_state.h"

#include <utility>

#include "base/status_macros.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<DocumentState>> DocumentState::Create(
    const Model& model, std::vector<uint32_t> context) {
  auto state = std::unique_ptr<DocumentState>(new DocumentState());
  state->context_ = std::move(context);
  for (uint32_t id : state->context_) state->seed_ = state->seed_ * 1'099'511'628'211u + id;
  KVTIER_ASSIGN_OR_RETURN(state->evaluation_,
                          Evaluation::Create(model, state->context_, &state->prefill_votes_));
  return state;
}

absl::StatusOr<const ScoreTable*> DocumentState::KvzipScores() {
  if (kvzip_ == nullptr) {
    KVTIER_ASSIGN_OR_RETURN(ScoreTable scores, evaluation_->KvzipScores());
    kvzip_ = std::make_unique<ScoreTable>(std::move(scores));
  }
  return kvzip_.get();
}

}  // namespace kvtier
