#include "compressor/scoring.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/activations.h"
#include "compressor/dense_spans.h"

namespace kvtier {
namespace {

// Row of each model layer in the score table; -1 for layers that are not scored.
std::vector<int64_t> ScoredRows(const Geometry& geometry) {
  std::vector<int64_t> rows;
  int64_t next = 0;
  for (LayerKind kind : geometry.layers) rows.push_back(kind == LayerKind::kGlobal ? next++ : -1);
  return rows;
}

// The terms that KVzip+ adds to the log weights of one layer and chunk.
class NormOffsets {
 public:
  NormOffsets(Backend& backend, const ValueOutputNorms* norms) : backend_(backend), norms_(norms) {}

  bool wanted() const { return norms_ != nullptr; }

  // -log ||h_i|| of the rows about to ask.
  absl::Status SetRows(TensorView attention_input) {
    std::vector<float> input(static_cast<size_t>(attention_input.rows * attention_input.cols));
    KVTIER_RETURN_IF_ERROR(DownloadFloats(backend_, attention_input, input));
    rows_.resize(static_cast<size_t>(attention_input.rows));
    for (size_t i = 0; i < rows_.size(); ++i) {
      double square = 0;
      for (int64_t c = 0; c < attention_input.cols; ++c) {
        const double value = input[i * static_cast<size_t>(attention_input.cols) + c];
        square += value * value;
      }
      rows_[i] = static_cast<float>(-0.5 * std::log(square));
    }
    return absl::OkStatus();
  }

  // log ||W_O v_j|| of the chunk's keys. Points `args` to both terms, which live until the next
  // call.
  absl::Status AddTo(int64_t layer, int64_t q_heads, ScoreArgs& args) {
    const int64_t columns = args.chunk_end - args.chunk_begin;
    keys_.resize(static_cast<size_t>(q_heads * columns));
    KVTIER_RETURN_IF_ERROR(
        norms_->LogNorms(layer, args.cache, args.chunk_begin, args.chunk_end, keys_));
    args.row_offsets = rows_.data();
    args.key_offsets = keys_.data();
    args.key_offset_stride = columns;
    return absl::OkStatus();
  }

 private:
  Backend& backend_;
  const ValueOutputNorms* norms_;
  std::vector<float> rows_;  // [q_rows]
  std::vector<float> keys_;  // [q_heads, columns]
};

}  // namespace

absl::StatusOr<std::unique_ptr<BackendScores>> ScoreContext(
    const Model& model, std::span<const uint32_t> context, int64_t system_tokens,
    const DenseCache& cache, ForwardScratch& scratch, const CancelToken& cancel,
    const std::function<void(uint64_t tokens_done)>& on_chunk, const ScoringRule& rule) {
  const PromptProfile& profile = model.profile();
  const Geometry& geometry = cache.geometry();
  const uint64_t tokens = context.size();
  if (cache.length() != system_tokens + static_cast<int64_t>(tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("scoring: the cache holds ", cache.length(), " rows, not ", system_tokens,
                     " of the system prompt and ", tokens, " of the context"));
  }
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<BackendScores> scores,
                          model.backend().MakeScores({.layers = geometry.scored_layer_count(),
                                                      .kv_heads = geometry.kv_heads,
                                                      .tokens = rule.leading_tokens + tokens}));
  const std::vector<int64_t> scored_rows = ScoredRows(geometry);
  const DenseSpans spans(cache);
  KVTIER_ASSIGN_OR_RETURN(
      DenseCache repeat,
      DenseCache::Create(
          model.backend(), geometry,
          model.backend().CacheRows(static_cast<int64_t>(profile.RepeatRowsMax(tokens)))));

  NormOffsets offsets(model.backend(), rule.norms);
  for (uint32_t c = 0; c < profile.ChunkCount(tokens); ++c) {
    KVTIER_RETURN_IF_ERROR(cancel.Check());
    const PromptProfile::Chunk chunk = profile.ChunkAt(tokens, c);
    // The repeat rows see every row of the cache and themselves; their own keys and values go into
    // `repeat`, which the next chunk overwrites. Nothing writes to the cache.
    repeat.SetLength(0);
    ForwardPlan plan;
    plan.spans = [&spans](int64_t layer) { return spans.layer(layer); };
    plan.tail = &repeat;
    plan.readable_span_rows = cache.capacity();
    plan.odd_rows = chunk.end - chunk.begin < profile.chunk_tokens;
    plan.first_position = cache.length();  // For every chunk: they do not see each other's repeat.
    plan.stop_after_last_queries = true;
    if (offsets.wanted()) {
      plan.on_attention_input = [&](int64_t layer, TensorView input) {
        return scored_rows[layer] < 0 ? absl::OkStatus() : offsets.SetRows(input);
      };
    }
    plan.on_queries = [&](int64_t layer, TensorView q, KvLayerView repeat_layer) -> absl::Status {
      if (scored_rows[layer] < 0) return absl::OkStatus();
      ScoreArgs args;
      args.q = q;
      args.cache = cache.layer(layer);
      args.chunk_begin = system_tokens + static_cast<int64_t>(chunk.begin);
      args.sink_rows = std::min(rule.sink_rows_max.value_or(system_tokens), args.chunk_begin);
      args.full_rows = rule.full_softmax ? cache.length() : 0;
      args.chunk_end = system_tokens + static_cast<int64_t>(chunk.end);
      args.repeat = repeat_layer;
      args.scale = model.config().softmax_scale();
      args.out = scores->From(static_cast<uint32_t>(scored_rows[layer]),
                              rule.leading_tokens + chunk.begin);
      args.out_stride = static_cast<int64_t>(scores->shape().tokens);
      if (offsets.wanted()) {
        KVTIER_RETURN_IF_ERROR(offsets.AddTo(layer, model.config().q_heads, args));
      }
      return model.backend().ScoreColumnMax(args);
    };
    const std::vector<uint32_t> ids = profile.RepeatInput(context, c);
    KVTIER_RETURN_IF_ERROR(Forward(model, ids, plan, scratch, /*logits=*/{}));
    if (on_chunk) on_chunk(chunk.end);
  }
  KVTIER_RETURN_IF_ERROR(CheckFinite(*scores, rule.leading_tokens));
  return scores;
}

}  // namespace kvtier
