// kvtier-bench compute. FLOPs are counted as in docs/performance.md: linear layers and attention,
// multiply-add = 2.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/cancel_token.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "bench/long_context.h"
#include "bench/onednn_rate.h"
#include "bench/random_model.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "compressor/cpu_backend.h"
#include "compressor/decoder.h"
#include "compressor/onednn_linear.h"
#include "compressor/pipeline.h"
#include "kvcache/ragged_view.h"

namespace kvtier::bench {
namespace {

double LinearParameters(const ModelConfig& c) {
  const double attention = static_cast<double>(c.hidden * c.head_dim) *
                           static_cast<double>(2 * c.q_heads + 2 * c.kv_heads);
  return static_cast<double>(c.layers) *
         (attention + 3.0 * static_cast<double>(c.hidden * c.intermediate));
}

// Attention FLOPs of one row over `keys` keys, all layers.
double AttentionFlops(const ModelConfig& c, double keys) {
  return 4.0 * static_cast<double>(c.layers * c.q_heads * c.head_dim) * keys;
}

struct Flops {
  double prefill = 0;
  double scoring = 0;  // The repeat pass, whose last layer stops at its queries, and the score.
  double score = 0;    // Of it: one product of queries and keys of the denominator.
};
Flops CountFlops(const ModelConfig& config, const PromptProfile& profile,
                 std::span<const uint32_t> context) {
  const double system = static_cast<double>(profile.prefix.size());
  const double rows = static_cast<double>(context.size()) + system;
  Flops flops;
  flops.prefill =
      2 * LinearParameters(config) * rows + AttentionFlops(config, (rows + 1) / 2) * rows;
  const double layers = static_cast<double>(config.layers);
  const double repeated_layers = (layers - 1) / layers;
  for (uint32_t t = 0; t < profile.ChunkCount(context.size()); ++t) {
    const PromptProfile::Chunk chunk = profile.ChunkAt(context.size(), t);
    const double q = static_cast<double>(profile.RepeatInput(context, t).size());
    const double m = static_cast<double>(chunk.end - chunk.begin);
    const double score = AttentionFlops(config, system + m + (q + 1) / 2) / 2 * q;
    flops.score += score;
    flops.scoring += score + repeated_layers * (2 * LinearParameters(config) * q +
                                                AttentionFlops(config, rows + (q + 1) / 2) * q);
  }
  return flops;
}

// What oneDNN alone reaches at the shapes of a layer's linear layers, `rows` at a time, in the
// backend's dtype: all FLOPs over all time.
absl::StatusOr<double> LinearCeiling(const ModelConfig& c, int64_t rows, int runs) {
  const DType dtype = OnednnHasBf16Products() ? DType::kBf16 : DType::kF32;
  const int64_t q_width = c.q_heads * c.head_dim;
  const int64_t kv_width = c.kv_heads * c.head_dim;
  const struct {
    int64_t in, out;
    double count;
  } shapes[] = {{c.hidden, q_width, 1},
                {c.hidden, kv_width, 2},
                {q_width, c.hidden, 1},
                {c.hidden, c.intermediate, 2},
                {c.intermediate, c.hidden, 1}};
  double flops = 0;
  double seconds = 0;
  for (const auto& shape : shapes) {
    KVTIER_ASSIGN_OR_RETURN(const double rate, OnednnRate(rows, shape.in, shape.out, dtype, runs));
    const double work = shape.count * static_cast<double>(shape.in * shape.out);
    flops += work;
    seconds += work / rate;
  }
  return flops / seconds;
}

// A line of /proc/self/status in bytes, for instance "VmHWM:"; 0 where there is none.
double StatusBytes(absl::string_view name) {
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line)) {
    absl::string_view rest = line;
    int64_t kilobytes = 0;
    if (absl::ConsumePrefix(&rest, name) && absl::ConsumeSuffix(&rest, " kB") &&
        absl::SimpleAtoi(rest, &kilobytes)) {
      return 1024.0 * static_cast<double>(kilobytes);
    }
  }
  return 0;
}

// Stage times of one run each, from the progress reports.
struct StageTimes {
  std::vector<double> prefill, scoring;
};
absl::StatusOr<CompressedObject> CompressTimed(const Pipeline& pipeline, const CompressInput& input,
                                               StageTimes& times) {
  const absl::Time begin = Clock::Real().Now();
  absl::Time prefilled, scored;
  const CancelToken cancel;
  KVTIER_ASSIGN_OR_RETURN(CompressedObject object,
                          pipeline.Compress(
                              input,
                              [&](const CompressProgress& progress) {
                                if (progress.tokens_done != progress.tokens_total) return;
                                const absl::Time now = Clock::Real().Now();
                                if (progress.stage == CompressStage::kPrefill) prefilled = now;
                                if (progress.stage == CompressStage::kScore) scored = now;
                              },
                              cancel));
  times.prefill.push_back(absl::ToDoubleSeconds(prefilled - begin));
  times.scoring.push_back(absl::ToDoubleSeconds(scored - prefilled));
  return object;
}

// ScoreColumnMax of one layer over one chunk, all rows, on random queries and keys.
absl::StatusOr<Row> MeasureScoreStep(Backend& backend, const ModelConfig& c, int64_t columns,
                                     int64_t q_rows, int runs, double ceiling) {
  Geometry geometry = c.MakeGeometry(DType::kBf16);
  geometry.layers.resize(1, LayerKind::kGlobal);
  KVTIER_ASSIGN_OR_RETURN(DenseCache cache, DenseCache::Create(backend, geometry, columns));
  KVTIER_ASSIGN_OR_RETURN(DenseCache repeat, DenseCache::Create(backend, geometry, q_rows));
  std::mt19937_64 random(4);
  std::normal_distribution<float> normal;
  const auto fill = [&](int64_t rows, int64_t cols) -> absl::StatusOr<Tensor> {
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float& value : values) value = normal(random);
    KVTIER_ASSIGN_OR_RETURN(Tensor tensor, backend.Allocate(DType::kF32, rows, cols));
    KVTIER_RETURN_IF_ERROR(backend.Upload(std::as_bytes(std::span(values)), tensor));
    return tensor;
  };
  const int64_t kv_width = c.kv_heads * c.head_dim;
  KVTIER_ASSIGN_OR_RETURN(const Tensor keys, fill(columns, kv_width));
  KVTIER_ASSIGN_OR_RETURN(const Tensor own, fill(q_rows, kv_width));
  KVTIER_ASSIGN_OR_RETURN(const Tensor q, fill(q_rows, c.q_heads * c.head_dim));
  KVTIER_RETURN_IF_ERROR(backend.AppendKv(keys, keys, cache.layer(0), 0));
  KVTIER_RETURN_IF_ERROR(backend.AppendKv(own, own, repeat.layer(0), 0));
  std::vector<float> scores(static_cast<size_t>(c.kv_heads * columns));
  ScoreArgs args;
  args.q = q;
  args.cache = cache.layer(0);
  args.chunk_end = columns;
  args.repeat = repeat.layer(0);
  args.scale = c.softmax_scale();
  args.out = scores.data();
  args.out_stride = columns;
  KVTIER_ASSIGN_OR_RETURN(const double seconds,
                          MedianSeconds(runs, [&] { return backend.ScoreColumnMax(args); }));
  const double flops = 2.0 * static_cast<double>(c.q_heads * c.head_dim * q_rows) *
                       (static_cast<double>(columns) + (static_cast<double>(q_rows) + 1) / 2);
  return Row{"score step alone, one layer and chunk", 1e-9 * flops / seconds, "GFLOP/s", ceiling,
             "oneDNN's linear layers"};
}

absl::StatusOr<Row> MeasureRankStep(const Geometry& geometry, uint64_t tokens, int runs) {
  ScoreTable table = ScoreTable::Create(geometry.scored_layer_count(), geometry.kv_heads, tokens);
  std::mt19937_64 random(5);
  std::uniform_real_distribution<float> uniform(-20, 0);
  for (float& score : table.log_scores) score = uniform(random);
  KVTIER_ASSIGN_OR_RETURN(
      const double seconds, MedianSeconds(runs, [&] {
        return AssignBands(table, BandEdges::Default(), /*first_token_first=*/false).status();
      }));
  return Row{"rank step alone", 1e-6 * static_cast<double>(table.pairs()) / seconds, "Mpairs/s"};
}

// Tokens per second over the object at full ratio and at the third band.
absl::Status MeasureDecode(const Model& model, const CompressedObject& object, int runs,
                           std::vector<Row>* figures) {
  const ModelConfig& config = model.config();
  double full_rate = 0;
  for (const uint32_t bands : {static_cast<uint32_t>(object.manifest->bands.size()), 3u}) {
    const uint32_t layers = config.layers;
    std::vector<SegmentRef> segments(object.segments.begin(),
                                     object.segments.begin() + bands * layers);
    KVTIER_ASSIGN_OR_RETURN(
        const auto cache,
        RaggedCache::Create(object.manifest, bands,
                            HeadRange{0, static_cast<uint32_t>(config.kv_heads)}, segments));
    constexpr int kSteps = 64;
    KVTIER_ASSIGN_OR_RETURN(const auto decoder, Decoder::Create(model, cache, kSteps));
    KVTIER_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(runs, [&]() -> absl::Status {
                              decoder->Reset();
                              for (int i = 0; i < kSteps; ++i) {
                                const uint32_t id = 65;
                                KVTIER_RETURN_IF_ERROR(decoder->Append({&id, 1}).status());
                              }
                              return absl::OkStatus();
                            }));
    const double rate = kSteps / seconds;
    if (full_rate == 0) full_rate = rate;
    figures->push_back({"decode at ratio " + cache->ratio().ToString(), rate, "tokens/s",
                        rate == full_rate ? 0 : full_rate, "ratio 1"});
  }
  return absl::OkStatus();
}

// What one compression takes beyond the packed weights, the dense cache and what the process had
// before: at most 2 % of these two and 64 MiB.
Row PeakFigure(double before_bytes, double weight_bytes, double cache_bytes) {
  constexpr double kMiB = 1 << 20;
  const double beyond = StatusBytes("VmHWM:") - before_bytes - weight_bytes - cache_bytes;
  const double allowed = 0.02 * (weight_bytes + cache_bytes) + 64 * kMiB;
  return {"peak memory beyond weights and cache", beyond / kMiB, "MiB", allowed / kMiB,
          "2 % + 64 MiB"};
}

}  // namespace

absl::StatusOr<SuiteResult> RunComputeSuite(const ComputeOptions& options) {
  std::string folder = options.model_folder;
  std::string made;
  const absl::Cleanup remove = [&made] {
    std::error_code error;
    if (!made.empty()) std::filesystem::remove_all(made, error);
  };
  if (!options.shape.empty()) {
    made = (std::filesystem::temp_directory_path() / "kvtier-bench-XXXXXX").string();
    if (mkdtemp(made.data()) == nullptr) {
      return absl::UnavailableError(absl::StrCat(made, ": cannot be made"));
    }
    KVTIER_RETURN_IF_ERROR(WriteRandomModel(options.shape, made));
    folder = made;
  }

  const double before_bytes = StatusBytes("VmRSS:");
  const std::unique_ptr<Backend> backend = MakeCpuBackend();
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(folder, *backend));
  const ModelConfig& config = model->config();
  std::mt19937_64 random(2);
  std::vector<uint32_t> context(static_cast<size_t>(options.context_tokens));
  const uint64_t ids = std::min<uint64_t>(256, static_cast<uint64_t>(config.vocabulary));
  for (uint32_t& id : context) id = static_cast<uint32_t>(random() % ids);
  const Pipeline pipeline(*model, PipelineOptions{});
  CompressInput input;
  input.context = context;

  // The first run warms up and is not timed, but its memory counts.
  StageTimes times;
  KVTIER_ASSIGN_OR_RETURN(CompressedObject object, CompressTimed(pipeline, input, times));
  const Geometry geometry = config.MakeGeometry(DType::kBf16);
  const double rows = static_cast<double>(context.size() + model->profile().prefix.size());
  const Row peak = PeakFigure(before_bytes, static_cast<double>(model->weight_bytes()),
                              rows * static_cast<double>(geometry.dense_token_bytes()));
  times = {};
  for (int run = 0; run < std::max(1, options.runs); ++run) {
    KVTIER_ASSIGN_OR_RETURN(object, CompressTimed(pipeline, input, times));
  }
  KVTIER_ASSIGN_OR_RETURN(const double ceiling,
                          LinearCeiling(config, options.context_tokens, options.runs));

  const Flops flops = CountFlops(config, model->profile(), context);
  const double prefill = Median(times.prefill);
  const double scoring = Median(times.scoring);
  const double n = options.context_tokens;
  std::vector<Row> figures = {
      {absl::StrCat("oneDNN's linear layers, ", OnednnHasBf16Products() ? "bf16" : "fp32"), ceiling,
       "GFLOP/s"},
      {"prefill", n / prefill, "tokens/s"},
      {"prefill, FLOP rate", 1e-9 * flops.prefill / prefill, "GFLOP/s", ceiling,
       "oneDNN's linear layers"},
      {"scoring", n / scoring, "tokens/s"},
      {"scoring, FLOP rate", 1e-9 * flops.scoring / scoring, "GFLOP/s", ceiling,
       "oneDNN's linear layers"},
      {"scoring / prefill time", scoring / prefill, "x", flops.scoring / flops.prefill,
       "the FLOP ratio"},
      peak,
  };
  const uint32_t chunk =
      std::min<uint32_t>(model->profile().chunk_tokens, static_cast<uint32_t>(context.size()));
  KVTIER_ASSIGN_OR_RETURN(
      figures.emplace_back(),
      MeasureScoreStep(*backend, config, chunk,
                       static_cast<int64_t>(model->profile().RepeatRowsMax(context.size())),
                       options.runs, ceiling));
  KVTIER_ASSIGN_OR_RETURN(figures.emplace_back(),
                          MeasureRankStep(geometry, context.size(), options.runs));
  KVTIER_RETURN_IF_ERROR(MeasureDecode(*model, object, options.runs, &figures));
  if (options.long_tokens > 0) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<Row> more, RunLongContext(options.long_tokens));
    figures.insert(figures.end(), more.begin(), more.end());
  }
  return SuiteResult{.rows = std::move(figures)};
}

}  // namespace kvtier::bench
