// Other eviction methods at KVzip's budget, for comparison. Each gives a ScoreTable, so that
// AssignBands, PackObject and the decoder serve them exactly as they serve KVzip: same protected
// rows, same k over all scored pairs, same first-token rule where there is no system prompt.
// Plain functions: any thread may call, on memory of its own.
#ifndef KVTIER_COMPRESSOR_BASELINES_H_
#define KVTIER_COMPRESSOR_BASELINES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/model.h"
#include "compressor/ranking.h"
#include "kvcache/geometry.h"

namespace kvtier {

// Random eviction: every pair gets an independent uniform score, so each band is a random sample.
ScoreTable RandomScores(const Geometry& geometry, uint64_t context_tokens, uint64_t seed);

// SnapKV (Li et al. 2024, arXiv 2404.14469), fitted to one question: the rows of `question` (its
// tokens as the decoder gets them, profile.WrapQuery) are the observation window. Each row's
// attention is a softmax over all keys before it; its weights on the context are averaged over the
// window's rows and the query group, then max-pooled along positions with kernel 7 (the paper's
// LongBench setting). Every layer keeps the same number of pairs, shared freely among its heads:
// the setting in which the KVzip paper (arXiv 2505.23416) runs this baseline. The scores are
// therefore ranks, 0, -1, -2, ... inside each layer.
// `cache` holds system prompt and context and does not change.
// REQUIRES: scratch.rows_max() >= question.size().
// INVALID_ARGUMENT: an empty question; as Forward. RESOURCE_EXHAUSTED: no memory.
absl::StatusOr<ScoreTable> SnapKvScores(const Model& model, const DenseCache& cache,
                                        int64_t system_tokens, std::span<const uint32_t> question,
                                        ForwardScratch& scratch);

inline constexpr int kSnapKvPoolKernel = 7;

// The two steps of SnapKV after attention; for tests.
// Maximum over the `kernel` neighbours centred at each position, cut off at the ends.
std::vector<float> MaxPool(std::span<const float> values, int kernel);
// Replaces each score by minus its rank inside its layer (ties: head, position).
void RankInsideLayers(ScoreTable& scores);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_BASELINES_H_
