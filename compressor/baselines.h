// Other eviction methods at KVzip's budget, for comparison. Each gives a ScoreTable, so that
// AssignBands, PackObject and the decoder serve them exactly as they serve KVzip: same protected
// rows, same k over all scored pairs, same first-token rule where there is no system prompt.
//
// SnapKV, PyramidKV and H2O look at attention (compressor/attention_votes.h) and are fitted to one
// question. As in the KVzip paper (arXiv 2505.23416), the number of pairs is fixed per layer and
// shared freely among the layer's heads; only PyramidKV gives layers different numbers. Their
// scores are therefore ranks inside a layer, not log scores: only the order means something.
// Plain functions: any thread may call, on memory of its own.
#ifndef KVTIER_COMPRESSOR_BASELINES_H_
#define KVTIER_COMPRESSOR_BASELINES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/attention_votes.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/model.h"
#include "compressor/ranking.h"
#include "kvcache/geometry.h"

namespace kvtier {

// Random eviction: every pair gets an independent uniform score, so each band is a random sample.
ScoreTable RandomScores(const Geometry& geometry, uint64_t context_tokens, uint64_t seed);

// Sinks and a recent window (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453): the first
// kSinkTokens of the sequence, then the most recent tokens, in every head alike. A system prompt of
// that many tokens already holds the sinks. Rotary positions are kept as they are everywhere in
// this project; the paper's renumbering of them is for streams longer than the model's positions.
ScoreTable SinkRecentScores(const Geometry& geometry, uint64_t system_tokens,
                            uint64_t context_tokens);
inline constexpr uint64_t kSinkTokens = 4;

// The three below: INVALID_ARGUMENT when a layer has more pairs than kRankMax (PyramidKV: than a
// quarter of it).

// SnapKV (Li et al. 2024, arXiv 2404.14469): the question's rows are the observation window; their
// votes are max-pooled along positions with kernel 7 (the paper's LongBench setting). Every layer
// keeps the same number of pairs.
absl::StatusOr<ScoreTable> SnapKvScores(const AttentionVotes& question);
// The same from the model: QuestionVotes, then the above, with their requirements and errors.
absl::StatusOr<ScoreTable> SnapKvScores(const Model& model, const DenseCache& cache,
                                        int64_t system_tokens, std::span<const uint32_t> question,
                                        ForwardScratch& scratch);
inline constexpr int kSnapKvPoolKernel = 7;

// PyramidKV (Cai et al. 2024, arXiv 2406.02069): SnapKV's order inside a layer, budgets that fall
// linearly from the first layer to the last, which gets kPyramidBeta times less than the mean
// (beta = 20 as in the authors' code). Where that would give the first layer more pairs than it
// has, it keeps them all and the slope is flattened, also as in their code.
absl::StatusOr<ScoreTable> PyramidKvScores(const AttentionVotes& question);
inline constexpr double kPyramidBeta = 20;
// The fraction of its pairs that layer `layer` of `layers` keeps at `ratio`. Ascends with `ratio`;
// the mean over the layers is `ratio`. REQUIRES: 0 <= ratio <= 1, layer < layers.
double PyramidLayerRatio(uint32_t layer, uint32_t layers, double ratio);
// Its inverse: the smallest ratio at which the layer keeps the fraction `kept` of its pairs.
double PyramidRatioOf(uint32_t layer, uint32_t layers, double kept);

// H2O (Zhang et al. 2023, arXiv 2306.14048): half of a layer's pairs are the most recent tokens,
// half the heavy hitters, those with the largest sum of attention from all rows of the prefill and
// of the question. `prefill` and `question` are votes on the same context.
absl::StatusOr<ScoreTable> H2oScores(const AttentionVotes& prefill, const AttentionVotes& question);

// Every integer up to this is a float.
inline constexpr uint64_t kRankMax = uint64_t{1} << 24;

// Steps of the above; for tests.
// Maximum over the `kernel` neighbours centred at each position, cut off at the ends.
std::vector<float> MaxPool(std::span<const float> values, int kernel);
// Replaces each score by minus its rank inside its layer (ties: head, position).
void RankInsideLayers(ScoreTable& scores);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_BASELINES_H_
