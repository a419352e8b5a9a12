#include "compressor/attention_votes.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/activations.h"
#include "compressor/cpu_kernels.h"
#include "compressor/cpu_tiles.h"
#include "compressor/dense_spans.h"

namespace kvtier {
namespace {

// Appends the first `rows` keys of a head to `keys`, which is [*, head_dim].
absl::Status AppendKeys(Backend& backend, const KvLayerView& layer, int64_t head, int64_t rows,
                        std::vector<float>& keys) {
  if (rows == 0) return absl::OkStatus();
  TensorView view;
  view.data = layer.keys;
  view.dtype = layer.dtype;
  view.rows = layer.kv_heads * layer.capacity;
  view.cols = layer.head_dim;
  const size_t floats = static_cast<size_t>(rows * layer.head_dim);
  keys.resize(keys.size() + floats);
  return DownloadFloats(backend, view.Rows(head * layer.capacity, rows),
                        std::span(keys).last(floats));
}

// All keys of a head that some row sees, [before_rows + tail_rows, head_dim].
absl::StatusOr<std::vector<float>> HeadKeys(Backend& backend, const VoteKeys& keys, int64_t head) {
  std::vector<float> floats;
  floats.reserve((keys.before_rows + keys.tail_rows) * keys.tail.head_dim);
  KVTIER_RETURN_IF_ERROR(AppendKeys(backend, keys.before, head, keys.before_rows, floats));
  KVTIER_RETURN_IF_ERROR(AppendKeys(backend, keys.tail, head, keys.tail_rows, floats));
  return floats;
}

absl::Status CheckShapes(const TensorView& q, const VoteKeys& keys, std::span<double> sums) {
  const KvLayerView& tail = keys.tail;
  const int64_t width = tail.kv_heads * tail.head_dim;
  const bool before_fits = keys.before_rows == 0 || (keys.before.kv_heads == tail.kv_heads &&
                                                     keys.before.head_dim == tail.head_dim &&
                                                     keys.before_rows <= keys.before.capacity);
  if (width <= 0 || q.rows <= 0 || q.cols <= 0 || q.cols % width != 0 || !before_fits ||
      keys.before_rows < 0 || keys.tail_rows < q.rows || keys.tail_rows > tail.capacity) {
    return absl::InvalidArgumentError(
        absl::StrCat("votes: queries [", q.rows, ", ", q.cols, "] over ", keys.before_rows, " + ",
                     keys.tail_rows, " rows of ", tail.kv_heads, " heads x ", tail.head_dim));
  }
  const int64_t columns = keys.before_rows + keys.tail_rows;
  if (static_cast<int64_t>(sums.size()) != tail.kv_heads * columns) {
    return absl::InvalidArgumentError(absl::StrCat("votes: room for ", sums.size(), " sums, not ",
                                                   tail.kv_heads, " x ", columns));
  }
  return absl::OkStatus();
}

// Turns `logits` into exp(scale * logit - maximum) and returns 1 / their sum.
float Softmax(const CpuKernels& kernels, std::span<float> logits, float scale) {
  const float largest = scale * *std::max_element(logits.begin(), logits.end());
  for (float& logit : logits) logit = scale * logit - largest;
  kernels.exp(logits.data(), static_cast<int64_t>(logits.size()), logits.data());
  double total = 0;
  for (float weight : logits) total += weight;
  return static_cast<float>(1 / total);
}

// Forwards a pass's queries to `vote(scored layer, layer, q, tail)`.
using Vote = std::function<absl::Status(uint32_t, int64_t, TensorView, KvLayerView)>;
void VoteOnScoredLayers(ForwardPlan& plan, const Geometry& geometry, Vote vote) {
  plan.on_queries = [&geometry, vote = std::move(vote)](int64_t layer, TensorView q,
                                                        KvLayerView tail) -> absl::Status {
    if (geometry.layers[layer] != LayerKind::kGlobal) return absl::OkStatus();
    const auto scored =
        std::count(geometry.layers.begin(), geometry.layers.begin() + layer, LayerKind::kGlobal);
    return vote(static_cast<uint32_t>(scored), layer, q, tail);
  };
}

AttentionVotes NoVotes(const Geometry& geometry, uint64_t tokens) {
  AttentionVotes votes;
  votes.layers = geometry.scored_layer_count();
  votes.kv_heads = geometry.kv_heads;
  votes.tokens = tokens;
  votes.sums.resize(uint64_t{votes.layers} * votes.kv_heads * tokens);
  return votes;
}

// Adds the context's part of one layer's sums ([kv_heads, columns], context from column `begin`) to
// the votes, as far as the columns go.
void AddContextColumns(std::span<const double> sums, int64_t columns, int64_t begin, uint32_t layer,
                       AttentionVotes& votes) {
  for (uint32_t head = 0; head < votes.kv_heads; ++head) {
    double* out = &votes.sums[(uint64_t{layer} * votes.kv_heads + head) * votes.tokens];
    const int64_t end = std::min(columns, begin + static_cast<int64_t>(votes.tokens));
    for (int64_t c = begin; c < end; ++c) out[c - begin] += sums[head * columns + c];
  }
}

}  // namespace

absl::Status AddVotes(Backend& backend, TensorView q, const VoteKeys& keys, float scale,
                      std::span<double> sums) {
  KVTIER_RETURN_IF_ERROR(CheckShapes(q, keys, sums));
  const CpuKernels& kernels = BestCpuKernels();
  const int64_t dim = keys.tail.head_dim;
  const int64_t group = q.cols / dim / keys.tail.kv_heads;
  const int64_t columns = keys.before_rows + keys.tail_rows;
  const int64_t stride = PadUp(columns);
  std::vector<float> queries(static_cast<size_t>(q.rows * q.cols));
  KVTIER_RETURN_IF_ERROR(DownloadFloats(backend, q, queries));
  std::vector<float> transposed(dim * stride);
  std::vector<float> logits(std::min(kVoteRows, q.rows) * stride);
  std::vector<float> some_sums(columns);  // Of at most kVoteRows rows: fp32 is exact enough.
  for (int64_t head = 0; head < keys.tail.kv_heads; ++head) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<float> floats, HeadKeys(backend, keys, head));
    kernels.load_transposed(floats.data(), KvElement::kF32, columns, dim, transposed.data(),
                            stride);
    for (int64_t g = 0; g < group; ++g) {
      for (int64_t begin = 0; begin < q.rows; begin += kVoteRows) {
        const int64_t rows = std::min(kVoteRows, q.rows - begin);
        // No row of this block sees more.
        const int64_t seen = keys.before_rows + keys.tail_rows - q.rows + begin + rows;
        kernels.multiply(&queries[begin * q.cols + (head * group + g) * dim], q.cols,
                         transposed.data(), stride, logits.data(), stride, rows, PadUp(seen), dim,
                         /*accumulate=*/false);
        std::fill(some_sums.begin(), some_sums.end(), 0.0f);
        for (int64_t i = 0; i < rows; ++i) {
          const std::span<float> row(&logits[i * stride], seen - rows + i + 1);
          const float inverse = Softmax(kernels, row, scale);
          for (size_t c = 0; c < row.size(); ++c) some_sums[c] += row[c] * inverse;
        }
        for (int64_t c = 0; c < seen; ++c) sums[head * columns + c] += some_sums[c];
      }
    }
  }
  return absl::OkStatus();
}

absl::Status AddVotesReference(Backend& backend, TensorView q, const VoteKeys& keys, float scale,
                               std::span<double> sums) {
  KVTIER_RETURN_IF_ERROR(CheckShapes(q, keys, sums));
  const int64_t dim = keys.tail.head_dim;
  const int64_t group = q.cols / dim / keys.tail.kv_heads;
  const int64_t columns = keys.before_rows + keys.tail_rows;
  std::vector<float> queries(static_cast<size_t>(q.rows * q.cols));
  KVTIER_RETURN_IF_ERROR(DownloadFloats(backend, q, queries));
  for (int64_t head = 0; head < keys.tail.kv_heads; ++head) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<float> floats, HeadKeys(backend, keys, head));
    for (int64_t row = 0; row < q.rows * group; ++row) {
      const int64_t i = row / group;
      const float* query = &queries[i * q.cols + (head * group + row % group) * dim];
      std::vector<double> weights(columns - q.rows + i + 1);
      double largest = -INFINITY;
      for (size_t c = 0; c < weights.size(); ++c) {
        for (int64_t d = 0; d < dim; ++d) weights[c] += double{query[d]} * floats[c * dim + d];
        weights[c] *= scale;
        largest = std::max(largest, weights[c]);
      }
      double total = 0;
      for (double& weight : weights) total += weight = std::exp(weight - largest);
      for (size_t c = 0; c < weights.size(); ++c) sums[head * columns + c] += weights[c] / total;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<AttentionVotes> QuestionVotes(const Model& model, const DenseCache& cache,
                                             int64_t system_tokens,
                                             std::span<const uint32_t> question,
                                             ForwardScratch& scratch) {
  if (question.empty()) return absl::InvalidArgumentError("votes: the question is empty");
  const Geometry& geometry = cache.geometry();
  AttentionVotes votes = NoVotes(geometry, cache.length() - system_tokens);
  const DenseSpans spans(cache);
  KVTIER_ASSIGN_OR_RETURN(
      DenseCache tail,
      DenseCache::Create(model.backend(), geometry, static_cast<int64_t>(question.size())));
  const int64_t columns = cache.length() + static_cast<int64_t>(question.size());
  ForwardPlan plan;
  plan.spans = [&spans](int64_t layer) { return spans.layer(layer); };
  plan.tail = &tail;
  plan.first_position = cache.length();
  plan.stop_after_last_queries = true;
  VoteOnScoredLayers(
      plan, geometry, [&](uint32_t scored, int64_t layer, TensorView q, KvLayerView own) {
        std::vector<double> sums(geometry.kv_heads * columns);
        const VoteKeys keys{.before = cache.layer(layer),
                            .before_rows = cache.length(),
                            .tail = own,
                            .tail_rows = q.rows};
        KVTIER_RETURN_IF_ERROR(
            AddVotes(model.backend(), q, keys, model.config().softmax_scale(), sums));
        AddContextColumns(sums, columns, system_tokens, scored, votes);
        return absl::OkStatus();
      });
  KVTIER_RETURN_IF_ERROR(Forward(model, question, plan, scratch, /*logits=*/{}));
  return votes;
}

absl::StatusOr<AttentionVotes> PrefillWithVotes(const Model& model, std::span<const uint32_t> ids,
                                                int64_t system_tokens, DenseCache& cache,
                                                ForwardScratch& scratch) {
  if (cache.length() != 0 || static_cast<int64_t>(ids.size()) <= system_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("votes: ", ids.size(), " tokens, ",
                                                   system_tokens,
                                                   " of them system prompt, into a "
                                                   "cache of ",
                                                   cache.length(), " rows"));
  }
  const Geometry& geometry = cache.geometry();
  AttentionVotes votes = NoVotes(geometry, ids.size() - system_tokens);
  for (size_t begin = 0; begin < ids.size();) {
    const size_t rows = std::min<size_t>(ids.size() - begin, scratch.rows_max());
    const auto columns = static_cast<int64_t>(begin + rows);
    ForwardPlan plan;
    plan.tail = &cache;
    plan.first_position = cache.length();
    VoteOnScoredLayers(
        plan, geometry, [&](uint32_t scored, int64_t, TensorView q, KvLayerView tail) {
          std::vector<double> sums(geometry.kv_heads * columns);
          const VoteKeys keys{.tail = tail, .tail_rows = columns};
          KVTIER_RETURN_IF_ERROR(
              AddVotes(model.backend(), q, keys, model.config().softmax_scale(), sums));
          AddContextColumns(sums, columns, system_tokens, scored, votes);
          return absl::OkStatus();
        });
    KVTIER_RETURN_IF_ERROR(Forward(model, ids.subspan(begin, rows), plan, scratch, /*logits=*/{}));
    model.CountPrefilled(rows);
    begin += rows;
  }
  return votes;
}

}  // namespace kvtier
