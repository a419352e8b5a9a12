// Selection (docs/recipes.md): one total order over all scored pairs, (score descending, layer,
// head, position ascending), cut at exact counts. Identical on every backend given equal scores.
// Plain functions of their arguments: any thread may call.
//
//   KVTIER_ASSIGN_OR_RETURN(BandAssignment bands,
//                           AssignBands(scores, BandEdges::Default(),
//                           /*first_token_first=*/false));
//   bands.band[i] <= 2   // pair i is part of the cache at ratio 0.3
#ifndef KVTIER_COMPRESSOR_RANKING_H_
#define KVTIER_COMPRESSOR_RANKING_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/bands.h"

namespace kvtier {

// Log scores of the scored layers. Row-major [layers, kv_heads, tokens]; `layers` counts scored
// layers only, in model order.
struct ScoreTable {
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint64_t tokens = 0;
  std::vector<float> log_scores;

  // All scores 0.
  static ScoreTable Create(uint32_t layers, uint32_t kv_heads, uint64_t tokens) {
    return {layers, kv_heads, tokens, std::vector<float>(uint64_t{layers} * kv_heads * tokens)};
  }

  float& at(uint32_t layer, uint32_t head, uint64_t token) {
    return log_scores[(uint64_t{layer} * kv_heads + head) * tokens + token];
  }
  float at(uint32_t layer, uint32_t head, uint64_t token) const {
    return log_scores[(uint64_t{layer} * kv_heads + head) * tokens + token];
  }
  uint64_t pairs() const { return log_scores.size(); }
};

// Which band every pair belongs to.
struct BandAssignment {
  std::vector<uint8_t> band;      // [layers, kv_heads, tokens], as ScoreTable
  std::vector<float> thresholds;  // [bands] log score of each band's last rank; +inf if it is empty
  std::vector<double> score_mass;  // [bands] sum of exp(log score)
};

// Linear in the number of pairs: a radix select finds the pair at each cut, nothing is sorted and
// nothing larger than the result is allocated.
// INVALID_ARGUMENT for a NaN or +inf score (naming layer, head, token); -inf ranks last.
// `first_token_first`: where there is no system prompt, the first token of each head ranks before
// all others and counts in the budget (docs/recipes.md). Its score stays what it was, also in
// thresholds and score_mass.
absl::StatusOr<BandAssignment> AssignBands(const ScoreTable& scores, const BandEdges& edges,
                                           bool first_token_first);

// The same with cuts that need not follow from edges: band b holds ranks
// [rank_ends[b - 1], rank_ends[b]). INVALID_ARGUMENT also: rank_ends do not ascend (equal ones are
// empty bands), do not end at scores.pairs(), or are more than limits::kBandsMax.
absl::StatusOr<BandAssignment> AssignBandsAt(const ScoreTable& scores,
                                             std::span<const uint64_t> rank_ends,
                                             bool first_token_first);

// INVALID_ARGUMENT as AssignBandsAt says of rank_ends, for `pairs` pairs.
absl::Status CheckRankEnds(std::span<const uint64_t> rank_ends, uint64_t pairs);

// INVALID_ARGUMENT as AssignBands; also when the table's sizes do not fit each other.
absl::Status CheckScores(const ScoreTable& scores);

// The plain twin: sorts everything. Same bands and thresholds; score_mass up to rounding.
absl::StatusOr<BandAssignment> AssignBandsReference(const ScoreTable& scores,
                                                    const BandEdges& edges, bool first_token_first);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_RANKING_H_
