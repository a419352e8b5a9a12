#include "compressor/baselines.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

absl::Status CheckRanks(absl::string_view method, const AttentionVotes& votes, uint64_t most) {
  if (votes.kv_heads * votes.tokens <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(method, ": ", votes.kv_heads, " heads x ",
                                                 votes.tokens, " tokens, at most ", most));
}

// Pairs of one layer (head * tokens + token) by score, descending; ties: head, position.
std::vector<uint64_t> LayerOrder(const ScoreTable& scores, uint32_t layer) {
  const uint64_t per_layer = uint64_t{scores.kv_heads} * scores.tokens;
  const float* of_layer = scores.log_scores.data() + layer * per_layer;
  std::vector<uint64_t> order(per_layer);
  std::iota(order.begin(), order.end(), uint64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](uint64_t a, uint64_t b) { return of_layer[a] > of_layer[b]; });
  return order;
}

ScoreTable TableLike(const AttentionVotes& votes) {
  return ScoreTable::Create(votes.layers, votes.kv_heads, votes.tokens);
}

}  // namespace

ScoreTable RandomScores(const Geometry& geometry, uint64_t context_tokens, uint64_t seed) {
  ScoreTable scores =
      ScoreTable::Create(geometry.scored_layer_count(), geometry.kv_heads, context_tokens);
  std::mt19937_64 random(seed);
  // The 24 bits of a float's mantissa; their few ties fall to the lower index.
  for (float& score : scores.log_scores) score = -static_cast<float>(random() >> 40) * 0x1p-24f;
  return scores;
}

ScoreTable SinkRecentScores(const Geometry& geometry, uint64_t system_tokens,
                            uint64_t context_tokens) {
  ScoreTable scores =
      ScoreTable::Create(geometry.scored_layer_count(), geometry.kv_heads, context_tokens);
  const uint64_t sinks = kSinkTokens - std::min(system_tokens, kSinkTokens);
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    const uint64_t token = i % context_tokens;
    const uint64_t age = context_tokens - token;  // 1 for the last one
    scores.log_scores[i] = token < sinks ? 0.0f : -static_cast<float>(age);
  }
  return scores;
}

std::vector<float> MaxPool(std::span<const float> values, int kernel) {
  const int64_t count = static_cast<int64_t>(values.size());
  std::vector<float> pooled(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = std::max<int64_t>(0, i - kernel / 2);
    const int64_t end = std::min<int64_t>(count, i + kernel / 2 + 1);
    pooled[i] = *std::max_element(values.begin() + begin, values.begin() + end);
  }
  return pooled;
}

void RankInsideLayers(ScoreTable& scores) {
  const uint64_t per_layer = uint64_t{scores.kv_heads} * scores.tokens;
  for (uint32_t layer = 0; layer < scores.layers; ++layer) {
    const std::vector<uint64_t> order = LayerOrder(scores, layer);
    for (uint64_t rank = 0; rank < per_layer; ++rank) {
      scores.log_scores[layer * per_layer + order[rank]] = -static_cast<float>(rank);
    }
  }
}

absl::StatusOr<ScoreTable> SnapKvScores(const AttentionVotes& question) {
  KVTIER_RETURN_IF_ERROR(CheckRanks("SnapKV", question, kRankMax));
  ScoreTable scores = TableLike(question);
  for (uint32_t layer = 0; layer < scores.layers; ++layer) {
    for (uint32_t head = 0; head < scores.kv_heads; ++head) {
      const std::span<const double> votes = question.head(layer, head);
      const std::vector<float> floats(votes.begin(), votes.end());
      const std::vector<float> pooled = MaxPool(floats, kSnapKvPoolKernel);
      if (!pooled.empty()) {
        std::copy(pooled.begin(), pooled.end(), &scores.at(layer, head, 0));
      }
    }
  }
  RankInsideLayers(scores);
  return scores;
}

absl::StatusOr<ScoreTable> SnapKvScores(const Model& model, const DenseCache& cache,
                                        int64_t system_tokens, std::span<const uint32_t> question,
                                        ForwardScratch& scratch) {
  KVTIER_ASSIGN_OR_RETURN(const AttentionVotes votes,
                          QuestionVotes(model, cache, system_tokens, question, scratch));
  return SnapKvScores(votes);
}

// With a = 2 - 1/beta and b = 1/beta, the first layer keeps a * ratio and the last one b * ratio,
// until the first keeps everything, at ratio 1/a; from there on it keeps 1 and the last one
// 2 * ratio - 1. Both pieces agree at 1/a.
double PyramidLayerRatio(uint32_t layer, uint32_t layers, double ratio) {
  if (layers < 2) return ratio;
  const double depth = static_cast<double>(layer) / (layers - 1);
  double first = (2 - 1 / kPyramidBeta) * ratio;
  double last = ratio / kPyramidBeta;
  if (first > 1) {
    first = 1;
    last = 2 * ratio - 1;
  }
  return first + (last - first) * depth;
}

double PyramidRatioOf(uint32_t layer, uint32_t layers, double kept) {
  if (layers < 2) return kept;
  const double full_from = 1 / (2 - 1 / kPyramidBeta);
  const double kept_there = PyramidLayerRatio(layer, layers, full_from);
  if (kept <= kept_there) return kept * full_from / kept_there;
  return full_from + (kept - kept_there) * (1 - full_from) / (1 - kept_there);
}

absl::StatusOr<ScoreTable> PyramidKvScores(const AttentionVotes& question) {
  // Neighbouring ranks must stay apart as fractions, too.
  KVTIER_RETURN_IF_ERROR(CheckRanks("PyramidKV", question, kRankMax / 4));
  KVTIER_ASSIGN_OR_RETURN(ScoreTable scores, SnapKvScores(question));
  const uint64_t per_layer = uint64_t{scores.kv_heads} * scores.tokens;
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    const auto layer = static_cast<uint32_t>(i / per_layer);
    const double rank = -double{scores.log_scores[i]};
    scores.log_scores[i] = -static_cast<float>(
        PyramidRatioOf(layer, scores.layers, (rank + 1) / static_cast<double>(per_layer)));
  }
  return scores;
}

absl::StatusOr<ScoreTable> H2oScores(const AttentionVotes& prefill,
                                     const AttentionVotes& question) {
  KVTIER_RETURN_IF_ERROR(CheckRanks("H2O", prefill, kRankMax));
  if (prefill.layers != question.layers || prefill.kv_heads != question.kv_heads ||
      prefill.tokens != question.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("H2O: votes on ", prefill.tokens, " and on ", question.tokens, " tokens"));
  }
  ScoreTable sums = TableLike(prefill);
  for (uint64_t i = 0; i < sums.pairs(); ++i) {
    sums.log_scores[i] = static_cast<float>(prefill.sums[i] + question.sums[i]);
  }
  ScoreTable scores = TableLike(prefill);
  const uint64_t per_layer = uint64_t{scores.kv_heads} * scores.tokens;
  for (uint32_t layer = 0; layer < scores.layers; ++layer) {
    const std::vector<uint64_t> heavy = LayerOrder(sums, layer);
    // A recent and a heavy pair in turn, so that any budget is half of each; what one list has
    // taken, the other one passes over.
    std::vector<bool> taken(per_layer);
    uint64_t next_recent = 0;
    uint64_t next_heavy = 0;
    for (uint64_t rank = 0; rank < per_layer; ++rank) {
      uint64_t pair = 0;
      if (rank % 2 == 0) {
        do {
          const uint64_t age = next_recent / scores.kv_heads;
          pair = (next_recent % scores.kv_heads) * scores.tokens + (scores.tokens - 1 - age);
          ++next_recent;
        } while (taken[pair]);
      } else {
        do {
          pair = heavy[next_heavy++];
        } while (taken[pair]);
      }
      taken[pair] = true;
      scores.log_scores[layer * per_layer + pair] = -static_cast<float>(rank);
    }
  }
  return scores;
}

}  // namespace kvtier
