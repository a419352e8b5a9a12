// KVzip's scoring pass: the model repeats the context chunk by chunk against its own cache, and
// each KV pair's score is the largest attention it receives (kvzip.md sections 2 and 3).
#ifndef KVTIER_COMPRESSOR_SCORING_H_
#define KVTIER_COMPRESSOR_SCORING_H_

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/statusor.h"
#include "base/cancel_token.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/model.h"
#include "compressor/ranking.h"

namespace kvtier {

// `cache` holds system_tokens + context rows and comes out bit-identical. `on_chunk` (may be empty)
// hears the number of context tokens scored so far. The table's layers are the scored ones.
// REQUIRES: scratch.rows_max() >= model.profile().RepeatRowsMax(context.size()).
// INVALID_ARGUMENT: a score that is NaN or infinite (named); positions past the model's limit.
// CANCELLED: `cancel` fired between chunks. RESOURCE_EXHAUSTED: no memory for the repeat rows.
absl::StatusOr<ScoreTable> ScoreContext(const Model& model, std::span<const uint32_t> context,
                                        int64_t system_tokens, const DenseCache& cache,
                                        ForwardScratch& scratch, const CancelToken& cancel,
                                        const std::function<void(uint64_t tokens_done)>& on_chunk);

// What ScoreContext allocates: the repeat rows' keys and values and the score table.
uint64_t EstimateScoringBytes(const Model& model, const Geometry& geometry,
                              uint64_t context_tokens);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SCORING_H_
