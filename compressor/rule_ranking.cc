#include "compressor/rule_ranking.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint64_t HeadCount(const ScoreTable& scores) { return uint64_t{scores.layers} * scores.kv_heads; }

std::vector<uint64_t> RankEnds(SelectionRule rule, const BandEdges& edges, uint64_t heads,
                               uint64_t tokens) {
  std::vector<uint64_t> ends;
  for (const Ratio edge : edges.edges()) ends.push_back(KeptPairs(rule, edge, heads, tokens));
  return ends;
}

absl::Status RefusePerLayer() {
  return absl::InvalidArgumentError(
      "ranking: the same rows in every head of a layer are cut from a stored object (rebanding.h)");
}

absl::StatusOr<BandAssignment> AssignPerHead(const ScoreTable& scores, const BandEdges& edges,
                                             bool first_token_first) {
  BandAssignment all;
  all.band.reserve(scores.pairs());
  all.thresholds.assign(edges.size(), kInfinity);
  all.score_mass.assign(edges.size(), 0.0);
  ScoreTable one = ScoreTable::Create(1, 1, scores.tokens);
  for (uint64_t head = 0; head < HeadCount(scores); ++head) {
    std::copy_n(scores.log_scores.begin() + static_cast<ptrdiff_t>(head * scores.tokens),
                scores.tokens, one.log_scores.begin());
    KVTIER_ASSIGN_OR_RETURN(const BandAssignment own, AssignBands(one, edges, first_token_first));
    all.band.insert(all.band.end(), own.band.begin(), own.band.end());
    for (uint32_t b = 0; b < edges.size(); ++b) {
      all.thresholds[b] = std::min(all.thresholds[b], own.thresholds[b]);
      all.score_mass[b] += own.score_mass[b];
    }
  }
  return all;
}

// The best token of each head, as a table of one token.
ScoreTable BestTokens(const ScoreTable& scores) {
  ScoreTable best = ScoreTable::Create(scores.layers, scores.kv_heads, 1);
  for (uint64_t head = 0; head < HeadCount(scores); ++head) {
    const auto begin = scores.log_scores.begin() + static_cast<ptrdiff_t>(head * scores.tokens);
    best.log_scores[head] = *std::max_element(begin, begin + static_cast<ptrdiff_t>(scores.tokens));
  }
  return best;
}

absl::StatusOr<BandAssignment> AssignWholeHeads(const ScoreTable& scores, const BandEdges& edges) {
  BandAssignment all;
  all.thresholds.assign(edges.size(), kInfinity);
  all.score_mass.assign(edges.size(), 0.0);
  if (scores.pairs() == 0) return all;
  KVTIER_ASSIGN_OR_RETURN(const BandAssignment heads,
                          AssignBands(BestTokens(scores), edges, /*first_token_first=*/false));
  all.thresholds = heads.thresholds;
  all.band.reserve(scores.pairs());
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    const uint8_t band = heads.band[i / scores.tokens];
    all.band.push_back(band);
    all.score_mass[band] += std::exp(double{scores.log_scores[i]});
  }
  return all;
}

}  // namespace

absl::StatusOr<BandAssignment> AssignBandsByRule(const ScoreTable& scores, const BandEdges& edges,
                                                 SelectionRule rule, bool system_prompt) {
  KVTIER_RETURN_IF_ERROR(CheckScores(scores));
  const bool first_token_first = !system_prompt && PutsFirstTokenFirst(rule);
  switch (rule) {
    case SelectionRule::kPerHead:
      return AssignPerHead(scores, edges, first_token_first);
    case SelectionRule::kWholeHeads:
      return AssignWholeHeads(scores, edges);
    case SelectionRule::kPerLayer:
      return RefusePerLayer();
    case SelectionRule::kExact:
    case SelectionRule::kKvpress:
      break;
  }
  return AssignBandsAt(scores, RankEnds(rule, edges, HeadCount(scores), scores.tokens),
                       first_token_first);
}

absl::StatusOr<BandAssignment> AssignBandsByRuleReference(const ScoreTable& scores,
                                                          const BandEdges& edges,
                                                          SelectionRule rule, bool system_prompt) {
  KVTIER_RETURN_IF_ERROR(CheckScores(scores));
  if (rule == SelectionRule::kPerLayer) return RefusePerLayer();
  const bool first_token_first = !system_prompt && PutsFirstTokenFirst(rule);
  const uint64_t heads = HeadCount(scores);
  struct Pair {
    uint64_t head;
    bool first;
    float score;  // Of the pair; of its head's best where whole heads are ranked.
    uint64_t index;
  };
  std::vector<Pair> order;
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    const uint64_t head = i / scores.tokens;
    float score = scores.log_scores[i];
    if (rule == SelectionRule::kWholeHeads) {
      const float* begin = &scores.log_scores[head * scores.tokens];
      score = *std::max_element(begin, begin + scores.tokens);
    }
    order.push_back({head, first_token_first && i % scores.tokens == 0, score, i});
  }
  std::sort(order.begin(), order.end(), [rule](const Pair& a, const Pair& b) {
    if (rule == SelectionRule::kPerHead && a.head != b.head) return a.head < b.head;
    if (a.first != b.first) return a.first;
    if (!a.first && a.score != b.score) return a.score > b.score;
    return a.index < b.index;
  });
  // The ranks that end each band: of every head alone, or of all pairs.
  const bool apart = rule == SelectionRule::kPerHead;
  const std::vector<uint64_t> ends = RankEnds(rule, edges, apart ? 1 : heads, scores.tokens);
  const auto band_of = [&](uint64_t rank) {
    if (apart) rank %= scores.tokens;
    return static_cast<uint8_t>(std::upper_bound(ends.begin(), ends.end(), rank) - ends.begin());
  };
  BandAssignment result;
  result.band.resize(scores.pairs());
  result.thresholds.assign(edges.size(), kInfinity);
  result.score_mass.assign(edges.size(), 0.0);
  for (uint64_t rank = 0; rank < order.size(); ++rank) {
    const Pair& pair = order[rank];
    const uint8_t band = band_of(rank);
    result.band[pair.index] = band;
    result.score_mass[band] += std::exp(double{scores.log_scores[pair.index]});
    float& threshold = result.thresholds[band];
    const bool last_of_head =
        rank + 1 == order.size() || order[rank + 1].head != pair.head || band_of(rank + 1) != band;
    if (!apart) {
      threshold = pair.score;
    } else if (last_of_head) {
      threshold = std::min(threshold, pair.score);
    }
  }
  return result;
}

}  // namespace kvtier
