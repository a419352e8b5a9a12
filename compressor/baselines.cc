#include "compressor/baselines.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_macros.h"
#include "compressor/dense_spans.h"
#include "compressor/host_backend.h"

namespace kvtier {
namespace {

// Every integer up to this is a float.
constexpr uint64_t kRankMax = uint64_t{1} << 24;

absl::StatusOr<std::vector<float>> DownloadFloats(Backend& backend, TensorView from) {
  const size_t count = static_cast<size_t>(from.rows * from.cols);
  std::vector<float> floats(count);
  if (from.dtype == DType::kF32) {
    KVTIER_RETURN_IF_ERROR(backend.Download(from, AsMutableBytes(std::span(floats))));
    return floats;
  }
  std::vector<uint16_t> bits(count);
  KVTIER_RETURN_IF_ERROR(backend.Download(from, AsMutableBytes(std::span(bits))));
  LoadFloats(AsBytes(std::span<const uint16_t>(bits)).data(), from.dtype, floats);
  return floats;
}

// The first `rows` keys of a head, [rows, head_dim].
absl::StatusOr<std::vector<float>> DownloadKeys(Backend& backend, const KvLayerView& layer,
                                                int64_t head, int64_t rows) {
  TensorView view;
  view.data = layer.keys;
  view.dtype = layer.dtype;
  view.rows = layer.kv_heads * layer.capacity;
  view.cols = layer.head_dim;
  return DownloadFloats(backend, view.Rows(head * layer.capacity, rows));
}

float Dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t d = 0; d < count; ++d) sum += a[d] * b[d];
  return sum;
}

// One layer of SnapKV's vote: out[head * tokens + t] = mean weight of context token t.
struct Vote {
  std::vector<float> q;  // [rows, q_heads * head_dim]
  int64_t rows = 0;
  int64_t q_heads = 0;
  int64_t system_tokens = 0;
  int64_t context_tokens = 0;
  float scale = 0;
};

absl::Status VoteHead(Backend& backend, const Vote& vote, const KvLayerView& cache,
                      const KvLayerView& tail, int64_t head, std::span<float> out) {
  const int64_t head_dim = cache.head_dim;
  const int64_t before = vote.system_tokens + vote.context_tokens;
  const int64_t group = vote.q_heads / cache.kv_heads;
  KVTIER_ASSIGN_OR_RETURN(const std::vector<float> keys,
                          DownloadKeys(backend, cache, head, before));
  KVTIER_ASSIGN_OR_RETURN(const std::vector<float> own,
                          DownloadKeys(backend, tail, head, vote.rows));
  std::vector<double> sums(vote.context_tokens);
  std::vector<float> logits(before + vote.rows);
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t i = 0; i < vote.rows; ++i) {
      const float* q = &vote.q[(i * vote.q_heads + head * group + g) * head_dim];
      for (int64_t j = 0; j < before; ++j) {
        logits[j] = vote.scale * Dot(q, &keys[j * head_dim], head_dim);
      }
      const int64_t seen = before + i + 1;
      for (int64_t j = before; j < seen; ++j) {
        logits[j] = vote.scale * Dot(q, &own[(j - before) * head_dim], head_dim);
      }
      const float largest = *std::max_element(logits.begin(), logits.begin() + seen);
      double total = 0;
      for (int64_t j = 0; j < seen; ++j) total += logits[j] = std::exp(logits[j] - largest);
      for (int64_t t = 0; t < vote.context_tokens; ++t) {
        sums[t] += logits[vote.system_tokens + t] / total;
      }
    }
  }
  for (int64_t t = 0; t < vote.context_tokens; ++t) {
    out[t] = static_cast<float>(sums[t] / (group * vote.rows));
  }
  return absl::OkStatus();
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
  std::vector<uint64_t> order(per_layer);
  for (uint32_t layer = 0; layer < scores.layers; ++layer) {
    const std::span<float> of_layer =
        std::span(scores.log_scores).subspan(layer * per_layer, per_layer);
    std::iota(order.begin(), order.end(), uint64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](uint64_t a, uint64_t b) { return of_layer[a] > of_layer[b]; });
    for (uint64_t rank = 0; rank < per_layer; ++rank) {
      of_layer[order[rank]] = -static_cast<float>(rank);
    }
  }
}

absl::StatusOr<ScoreTable> SnapKvScores(const Model& model, const DenseCache& cache,
                                        int64_t system_tokens, std::span<const uint32_t> question,
                                        ForwardScratch& scratch) {
  if (question.empty()) return absl::InvalidArgumentError("SnapKV: the question is empty");
  const Geometry& geometry = cache.geometry();
  const uint64_t tokens = cache.length() - system_tokens;
  if (geometry.kv_heads * tokens > kRankMax) {
    return absl::InvalidArgumentError(absl::StrCat("SnapKV: ", geometry.kv_heads, " heads x ",
                                                   tokens, " tokens, at most ", kRankMax));
  }
  ScoreTable scores = ScoreTable::Create(geometry.scored_layer_count(), geometry.kv_heads, tokens);
  const DenseSpans spans(cache);
  KVTIER_ASSIGN_OR_RETURN(
      DenseCache tail,
      DenseCache::Create(model.backend(), geometry, static_cast<int64_t>(question.size())));
  uint32_t scored_row = 0;
  ForwardPlan plan;
  plan.spans = [&spans](int64_t layer) { return spans.layer(layer); };
  plan.tail = &tail;
  plan.first_position = cache.length();
  plan.stop_after_last_queries = true;
  plan.on_queries = [&](int64_t layer, TensorView q, KvLayerView tail_layer) -> absl::Status {
    if (geometry.layers[layer] != LayerKind::kGlobal) return absl::OkStatus();
    Vote vote;
    KVTIER_ASSIGN_OR_RETURN(vote.q, DownloadFloats(model.backend(), q));
    vote.rows = q.rows;
    vote.q_heads = model.config().q_heads;
    vote.system_tokens = system_tokens;
    vote.context_tokens = static_cast<int64_t>(tokens);
    vote.scale = model.config().softmax_scale();
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      const std::span<float> out(&scores.at(scored_row, head, 0), tokens);
      KVTIER_RETURN_IF_ERROR(
          VoteHead(model.backend(), vote, cache.layer(layer), tail_layer, head, out));
      const std::vector<float> pooled = MaxPool(out, kSnapKvPoolKernel);
      std::copy(pooled.begin(), pooled.end(), out.begin());
    }
    ++scored_row;
    return absl::OkStatus();
  };
  KVTIER_RETURN_IF_ERROR(Forward(model, question, plan, scratch, /*logits=*/{}));
  RankInsideLayers(scores);
  return scores;
}

}  // namespace kvtier
