#include "bench/long_context.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/cancel_token.h"
#include "base/clock.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "bench/random_model.h"
#include "compressor/cpu_backend.h"
#include "compressor/dense_spans.h"
#include "compressor/forward.h"
#include "compressor/reference_backend.h"
#include "compressor/scoring.h"

namespace kvtier::bench {
namespace {

constexpr double kToleranceOfLogScore = 1e-3;

struct Sample {
  int64_t layer = 0;
  int64_t head = 0;
};
constexpr Sample kSamples[] = {{0, 1}, {1, 3}};

// One head of a layer.
KvLayerView HeadOf(const KvLayerView& layer, int64_t head) {
  const int64_t at = head * layer.capacity * layer.head_dim * DTypeBytes(layer.dtype);
  KvLayerView one = layer;
  one.kv_heads = 1;
  one.keys = static_cast<char*>(layer.keys) + at;
  one.values = static_cast<char*>(layer.values) + at;
  return one;
}

// Scores one head of one chunk by the reference, from queries rounded as products in bf16 round
// them, and returns the largest difference from `table`.
absl::StatusOr<double> CompareHead(const ScoreArgs& args, int64_t head, const float* scores) {
  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  const int64_t width = args.q.cols / args.cache.kv_heads;
  KVTIER_ASSIGN_OR_RETURN(const Tensor q, reference->Allocate(DType::kF32, args.q.rows, width));
  for (int64_t row = 0; row < args.q.rows; ++row) {
    const float* from = static_cast<const float*>(args.q.data) + row * args.q.cols + head * width;
    float* to = static_cast<float*>(q.data()) + row * width;
    for (int64_t i = 0; i < width; ++i) to[i] = static_cast<float>(bfloat16(from[i]));
  }
  const int64_t columns = args.chunk_end - args.chunk_begin;
  std::vector<float> expected(static_cast<size_t>(columns));
  ScoreArgs one = args;
  one.q = q;
  one.cache = HeadOf(args.cache, head);
  one.repeat = HeadOf(args.repeat, head);
  one.out = expected.data();
  one.out_stride = columns;
  KVTIER_RETURN_IF_ERROR(reference->ScoreColumnMax(one));
  double worst = 0;
  for (int64_t j = 0; j < columns; ++j) {
    worst = std::max(worst, std::abs(double{scores[j]} - expected[j]));
  }
  return worst;
}

// The largest difference over kSamples, in the last chunk but a shorter one.
absl::StatusOr<double> CompareSamples(const Model& model, std::span<const uint32_t> context,
                                      int64_t system_tokens, const DenseCache& cache,
                                      const ScoreTable& table, ForwardScratch& scratch) {
  const PromptProfile& profile = model.profile();
  const uint32_t chunks = profile.ChunkCount(context.size());
  const uint32_t sampled = chunks > 1 ? chunks - 2 : 0;
  const PromptProfile::Chunk chunk = profile.ChunkAt(context.size(), sampled);
  KVTIER_ASSIGN_OR_RETURN(
      DenseCache repeat,
      DenseCache::Create(model.backend(), cache.geometry(),
                         static_cast<int64_t>(profile.RepeatRowsMax(context.size()))));
  const DenseSpans spans(cache);
  double worst = 0;
  ForwardPlan plan;
  plan.spans = [&spans](int64_t layer) { return spans.layer(layer); };
  plan.tail = &repeat;
  plan.first_position = cache.length();
  plan.stop_after_last_queries = true;
  plan.on_queries = [&](int64_t layer, TensorView q, KvLayerView repeat_layer) -> absl::Status {
    ScoreArgs args;
    args.q = q;
    args.cache = cache.layer(layer);
    args.sink_rows = system_tokens;
    args.chunk_begin = system_tokens + static_cast<int64_t>(chunk.begin);
    args.chunk_end = system_tokens + static_cast<int64_t>(chunk.end);
    args.repeat = repeat_layer;
    args.scale = model.config().softmax_scale();
    for (const Sample& sample : kSamples) {
      if (sample.layer != layer || sample.head >= model.config().kv_heads) continue;
      const uint64_t at =
          (static_cast<uint64_t>(layer) * table.kv_heads + static_cast<uint64_t>(sample.head)) *
              table.tokens +
          chunk.begin;
      KVTIER_ASSIGN_OR_RETURN(const double difference,
                              CompareHead(args, sample.head, table.log_scores.data() + at));
      worst = std::max(worst, difference);
    }
    return absl::OkStatus();
  };
  const std::vector<uint32_t> ids = profile.RepeatInput(context, sampled);
  KVTIER_RETURN_IF_ERROR(Forward(model, ids, plan, scratch, /*logits=*/{}));
  return worst;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunLongContext(int tokens) {
  std::string folder = (std::filesystem::temp_directory_path() / "kvtier-long-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat(folder, ": cannot be made"));
  }
  const absl::Cleanup remove = [&folder] {
    std::error_code error;
    std::filesystem::remove_all(folder, error);
  };
  KVTIER_RETURN_IF_ERROR(WriteRandomModel("two-layers", folder));
  const std::unique_ptr<Backend> backend = MakeCpuBackend();
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(folder, *backend));
  const PromptProfile& profile = model->profile();

  std::mt19937_64 random(3);
  std::vector<uint32_t> ids = profile.prefix;
  const int64_t system_tokens = static_cast<int64_t>(ids.size());
  for (int i = 0; i < tokens; ++i) {
    ids.push_back(
        static_cast<uint32_t>(random() % static_cast<uint64_t>(model->config().vocabulary)));
  }
  const std::span<const uint32_t> context =
      std::span<const uint32_t>(ids).subspan(static_cast<size_t>(system_tokens));
  const absl::Time begin = Clock::Real().Now();
  KVTIER_ASSIGN_OR_RETURN(DenseCache cache,
                          DenseCache::Create(*backend, model->config().MakeGeometry(DType::kBf16),
                                             static_cast<int64_t>(ids.size())));
  KVTIER_ASSIGN_OR_RETURN(
      ForwardScratch scratch,
      ForwardScratch::Create(*model, static_cast<int64_t>(profile.RepeatRowsMax(context.size()))));
  KVTIER_RETURN_IF_ERROR(Prefill(*model, ids, cache, scratch, nullptr));
  const absl::Time prefilled = Clock::Real().Now();
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable table,
                          ReadScores(ScoreContext(*model, context, system_tokens, cache, scratch,
                                                  CancelToken(), nullptr)));
  const absl::Time scored = Clock::Real().Now();
  KVTIER_ASSIGN_OR_RETURN(const double difference,
                          CompareSamples(*model, context, system_tokens, cache, table, scratch));
  if (!(difference <= kToleranceOfLogScore)) {
    return absl::InternalError(
        absl::StrCat("scores of ", tokens, " tokens differ from the reference's by ", difference));
  }
  return std::vector<Row>{
      {absl::StrCat(tokens, " tokens, 2 layers: prefill"), absl::ToDoubleSeconds(prefilled - begin),
       "s"},
      {absl::StrCat(tokens, " tokens, 2 layers: scoring"),
       absl::ToDoubleSeconds(scored - prefilled), "s"},
      {"largest difference from the reference", difference, "log score", kToleranceOfLogScore,
       "the tolerance"},
  };
}

}  // namespace kvtier::bench
