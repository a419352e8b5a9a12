#include "tests/gpu/bench_cases.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/dense_cache.h"
#include "compressor/model.h"
#include "compressor/packer.h"
#include "compressor/packing.h"
#include "compressor/pipeline.h"
#include "compressor/ranking.h"
#include "cuda/elementwise.h"
#include "tests/gpu/decode_step_bench.h"
#include "tests/gpu/random_checkpoint.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

constexpr uint64_t kSeed = 20260101;
constexpr double kKeptRatio = 0.3;

#include "tests/gpu/kept_rows.inc"

// The kept rows of each head, layer by layer.
using LayerRows = std::vector<std::vector<int64_t>>;

LayerRows EqualRows(int64_t heads, double ratio, int64_t tokens) {
  const auto rows = static_cast<int64_t>(ratio * static_cast<double>(tokens));
  return {std::vector<int64_t>(heads, std::max<int64_t>(1, rows))};
}

// As uneven as those of a real selection: the heads of the fixture model, one after the other and
// from the first again, until they end with a layer; so each counts as often and the mean is
// theirs.
LayerRows FixtureRows(int64_t heads, int64_t tokens) {
  constexpr auto kHeads = static_cast<int64_t>(std::size(kKeptRows));
  LayerRows layers;
  for (int64_t head = 0; layers.empty() || head % kHeads != 0; head += heads) {
    std::vector<int64_t>& rows = layers.emplace_back();
    for (int64_t h = head; h < head + heads; ++h) {
      const double share = static_cast<double>(kKeptRows[h % kHeads]) / kKeptOfTokens;
      rows.push_back(std::max<int64_t>(1, std::llround(share * static_cast<double>(tokens))));
    }
  }
  return layers;
}

// Random bf16 numbers of a device, one block of them repeated: products of any size, no denormals.
absl::Status FillRandom(Backend& backend, const TensorView& tensor) {
  constexpr int64_t kBlockElements = int64_t{1} << 20;
  const int64_t block_rows = std::clamp<int64_t>(kBlockElements / tensor.cols, 1, tensor.rows);
  std::mt19937_64 random(kSeed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<bfloat16> block(block_rows * tensor.cols);
  for (bfloat16& x : block) x = bfloat16(uniform(random));
  for (int64_t row = 0; row < tensor.rows; row += block_rows) {
    const int64_t count = std::min(block_rows, tensor.rows - row);
    KVTIER_RETURN_IF_ERROR(
        backend.Upload(std::as_bytes(std::span<const bfloat16>(block).first(count * tensor.cols)),
                       tensor.Rows(row, count)));
  }
  return absl::OkStatus();
}
absl::StatusOr<Tensor> RandomTensor(Backend& backend, int64_t rows, int64_t cols) {
  KVTIER_ASSIGN_OR_RETURN(Tensor tensor, backend.Allocate(DType::kBf16, rows, cols));
  KVTIER_RETURN_IF_ERROR(FillRandom(backend, tensor));
  return tensor;
}

// Multiply-adds of a prefill count twice: those of the linear layers, and of causal attention.
double PrefillFlop(const BenchModel& m, int64_t tokens) {
  const double q_out = static_cast<double>(m.kv_heads) * m.group * m.head_dim;
  const double kv_out = static_cast<double>(m.kv_heads) * m.head_dim;
  const double linear = m.layers * (m.hidden * (2 * q_out + 2 * kv_out) + 3.0 * m.hidden * m.mlp);
  const auto n = static_cast<double>(tokens);
  return 2 * linear * n + 2 * m.layers * q_out * n * n;
}

// When the stages of a compression ended, each after a wait for the device, and the most memory in
// use between the first two.
class StageWatch {
 public:
  explicit StageWatch(const BenchTarget& target) : target_(target) {}

  void Hear(const CompressProgress& progress) {
    const bool done = progress.tokens_done == progress.tokens_total;
    if (progress.stage == CompressStage::kPrefill && done) {
      status_.Update(target_.backend->Synchronize());
      prefilled = target_.clock();
      status_.Update(target_.device->ResetMemoryPeak());
    } else if (progress.stage == CompressStage::kPack && progress.tokens_done == 0) {
      status_.Update(target_.backend->Synchronize());
      scored = target_.clock();
      const absl::StatusOr<DeviceMemoryUse> use = target_.device->MemoryUse();
      status_.Update(use.status());
      if (use.ok()) peak_bytes = use->peak_bytes;
    }
  }
  const absl::Status& status() const { return status_; }

  double prefilled = 0;
  double scored = 0;
  uint64_t peak_bytes = 0;

 private:
  const BenchTarget& target_;
  absl::Status status_;
};

class Bench {
 public:
  explicit Bench(const BenchTarget& target) : target_(target) {}

  // Seconds of the median run; one run before them is not counted.
  absl::StatusOr<double> Time(const std::function<absl::Status(int run)>& work) const {
    std::vector<double> seconds;
    for (int run = 0; run <= target_.runs; ++run) {
      KVTIER_RETURN_IF_ERROR(backend().Synchronize());
      const double start = target_.clock();
      KVTIER_RETURN_IF_ERROR(work(run));
      KVTIER_RETURN_IF_ERROR(backend().Synchronize());
      if (run > 0) seconds.push_back(target_.clock() - start);
    }
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    return seconds[seconds.size() / 2];
  }

  // Bytes per second that the device reads and writes in a copy: the limit of rows that move bytes.
  absl::StatusOr<double> CopyRate() {
    if (copy_rate_.has_value()) return *copy_rate_;
    const int64_t rows = std::max<int64_t>(1, target_.copy_bytes / 256);
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory from,
                            DeviceMemory::Allocate(target_.device, rows * 256));
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory to,
                            DeviceMemory::Allocate(target_.device, rows * 256));
    KVTIER_RETURN_IF_ERROR(target_.device->Enter());
    KVTIER_RETURN_IF_ERROR(target_.device->Zero(from.as<void>(), rows * 256));
    // Sixteen bytes at a time: the kernel that converts moves single elements.
    std::vector<uint32_t> all(rows / 2);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint32_t>(i);
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory positions,
                            DeviceMemory::Of(target_.device, std::span<const uint32_t>(all)));
    const GatherRowsParams params{.keys = from.as<void>(),
                                  .values = from.as<std::byte>() + rows / 2 * 256,
                                  .positions = positions.as<uint32_t>(),
                                  .keys_out = to.as<void>(),
                                  .values_out = to.as<std::byte>() + rows / 2 * 256,
                                  .rows = rows / 2,
                                  .row_bytes = 256};
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Time([&](int) {
                              return target_.device->Check(
                                  LaunchGatherRows(params, target_.device->stream()), "copy");
                            }));
    copy_rate_ = 2.0 * 256 * static_cast<double>(rows / 2 * 2) / seconds;
    return *copy_rate_;
  }

  absl::StatusOr<Figures> Copy() {
    KVTIER_ASSIGN_OR_RETURN(const double rate, CopyRate());
    return Figures{{"bytes_per_second", rate}};
  }

  // One query row over the kept rows of each head, layer after layer. `head_rows` are those of the
  // first layers, and of all others in turn.
  absl::StatusOr<Figures> Decode(const BenchModel& model, const LayerRows& head_rows) {
    KVTIER_ASSIGN_OR_RETURN(const double copy_rate, CopyRate());
    const auto row_bytes = model.head_dim * int64_t{sizeof(bfloat16)};
    const auto kinds = static_cast<int64_t>(head_rows.size());
    std::vector<int64_t> rows;
    for (const auto& each : head_rows) {
      rows.push_back(std::accumulate(each.begin(), each.end(), int64_t{0}));
    }
    const int64_t bytes = 2 * std::accumulate(rows.begin(), rows.end(), int64_t{0}) * row_bytes;
    // Whole turns, so that bytes per layer are those of all kinds.
    const int64_t turns = std::clamp<int64_t>(target_.rotate_bytes / bytes + 1, 1,
                                              std::max<int64_t>(1, model.layers / kinds));
    const int64_t layers = turns * kinds;
    std::vector<Tensor> keys, values;
    std::vector<std::vector<RowSpan>> spans(layers);
    std::vector<HeadSpans> lists(layers);
    for (int64_t layer = 0; layer < layers; ++layer) {
      KVTIER_ASSIGN_OR_RETURN(Tensor k,
                              RandomTensor(backend(), rows[layer % kinds], model.head_dim));
      KVTIER_ASSIGN_OR_RETURN(Tensor v,
                              RandomTensor(backend(), rows[layer % kinds], model.head_dim));
      int64_t first = 0;
      for (const int64_t each : head_rows[layer % kinds]) {
        RowSpan span;
        span.keys = static_cast<const std::byte*>(k.data()) + first * row_bytes;
        span.values = static_cast<const std::byte*>(v.data()) + first * row_bytes;
        span.rows = static_cast<uint32_t>(each);
        spans[layer].push_back(span);
        first += each;
      }
      for (const RowSpan& span : spans[layer]) lists[layer].push_back(std::span(&span, 1));
      keys.push_back(std::move(k));
      values.push_back(std::move(v));
    }
    KVTIER_ASSIGN_OR_RETURN(const Tensor tail_k,
                            RandomTensor(backend(), model.kv_heads, model.head_dim));
    KVTIER_ASSIGN_OR_RETURN(const Tensor tail_v,
                            RandomTensor(backend(), model.kv_heads, model.head_dim));
    const int64_t columns = int64_t{model.kv_heads} * model.group * model.head_dim;
    KVTIER_ASSIGN_OR_RETURN(const Tensor q, RandomTensor(backend(), 1, columns));
    KVTIER_ASSIGN_OR_RETURN(const Tensor out, backend().Allocate(DType::kBf16, 1, columns));
    AttentionArgs args{.q = q, .span_dtype = DType::kBf16, .tail_rows = 1, .out = out};
    args.tail = {.keys = tail_k.data(),
                 .values = tail_v.data(),
                 .dtype = DType::kBf16,
                 .kv_heads = model.kv_heads,
                 .capacity = 1,
                 .head_dim = model.head_dim};
    args.scale = 1 / std::sqrt(static_cast<float>(model.head_dim));
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Time([&](int) -> absl::Status {
                              for (const HeadSpans& list : lists) {
                                args.spans = &list;
                                KVTIER_RETURN_IF_ERROR(backend().Attention(args));
                              }
                              return absl::OkStatus();
                            }));
    const double rate = static_cast<double>(bytes * turns) / seconds;
    return Figures{{"seconds_per_layer", seconds / static_cast<double>(layers)},
                   {"layers", static_cast<double>(layers)},
                   {"bytes_per_second", rate},
                   {"copy_share", rate / copy_rate}};
  }

  // All pairs into bands; then some layers into an object, as Pipeline packs: a segment is gathered
  // while the one before it is on its way to the host.
  absl::StatusOr<Figures> RankAndPack(const BenchModel& model, int64_t tokens) {
    if (backend().packer() == nullptr) {
      return absl::UnimplementedError("the backend packs on the host");
    }
    const BandEdges edges = BandEdges::Default();
    std::unique_ptr<BackendScores> scores;
    std::unique_ptr<RankedRows> ranked;
    const auto rank = [&](int) -> absl::Status {
      ranked.reset();
      KVTIER_ASSIGN_OR_RETURN(ranked,
                              backend().packer()->Rank({.scores = scores.get(), .edges = &edges}));
      return absl::OkStatus();
    };
    KVTIER_ASSIGN_OR_RETURN(scores, RandomScores(model, model.layers, tokens));
    KVTIER_ASSIGN_OR_RETURN(const double rank_seconds, Time(rank));

    constexpr uint32_t kPackedLayers = 4;
    const uint32_t layers = std::min(kPackedLayers, model.layers);
    ranked.reset();
    KVTIER_ASSIGN_OR_RETURN(scores, RandomScores(model, layers, tokens));
    KVTIER_RETURN_IF_ERROR(rank(0));
    Manifest identity;
    KVTIER_ASSIGN_OR_RETURN(identity.key, Key::FromBytes(std::string(32, 'k')));
    identity.upload_id = MakeUploadId();
    identity.recipe = Recipe().ToString();
    identity.geometry = {.kv_heads = model.kv_heads, .head_dim = model.head_dim, .layers = {}};
    identity.geometry.layers.assign(layers, LayerKind::kGlobal);
    identity.context_tokens = static_cast<uint64_t>(tokens);
    KVTIER_ASSIGN_OR_RETURN(DenseCache cache,
                            DenseCache::Create(backend(), identity.geometry, tokens));
    for (uint32_t layer = 0; layer < layers; ++layer) {
      const KvLayerView view = cache.layer(layer);
      TensorView rows;
      rows.dtype = view.dtype;
      rows.rows = view.kv_heads * view.capacity;
      rows.cols = view.head_dim;
      for (void* const data : {view.keys, view.values}) {
        rows.data = data;
        KVTIER_RETURN_IF_ERROR(FillRandom(backend(), rows));
      }
    }
    cache.SetLength(tokens);
    uint64_t bytes = 0;
    KVTIER_ASSIGN_OR_RETURN(const double pack_seconds, Time([&](int) -> absl::Status {
                              KVTIER_ASSIGN_OR_RETURN(
                                  const CompressedObject object,
                                  PackObject(backend(), cache, *ranked, edges, identity));
                              bytes = 0;
                              for (const SegmentRef& segment : object.segments)
                                bytes += segment.bytes().size();
                              return absl::OkStatus();
                            }));
    return Figures{
        {"rank_seconds", rank_seconds},  // Of scores that lie on the device.
                                         // With the rows' way to the host and their check values.
        {"pack_seconds_per_layer", pack_seconds / layers},
        {"pack_bytes_per_second", static_cast<double>(bytes) / pack_seconds}};
  }

  // The scores of one chunk in one layer, and the attention of the same repeat rows.
  absl::StatusOr<Figures> Score(const BenchModel& model, int64_t tokens) {
    const int64_t chunk = std::min(target_.chunk, tokens);
    const int64_t columns = int64_t{model.kv_heads} * model.group * model.head_dim;
    KVTIER_ASSIGN_OR_RETURN(const Tensor k,
                            RandomTensor(backend(), model.kv_heads * tokens, model.head_dim));
    KVTIER_ASSIGN_OR_RETURN(const Tensor v,
                            RandomTensor(backend(), model.kv_heads * tokens, model.head_dim));
    KVTIER_ASSIGN_OR_RETURN(const Tensor repeat_k,
                            RandomTensor(backend(), model.kv_heads * chunk, model.head_dim));
    KVTIER_ASSIGN_OR_RETURN(const Tensor q, RandomTensor(backend(), chunk, columns));
    KVTIER_ASSIGN_OR_RETURN(const Tensor out, backend().Allocate(DType::kBf16, chunk, columns));
    const float scale = 1 / std::sqrt(static_cast<float>(model.head_dim));
    const KvLayerView cache{.keys = k.data(),
                            .values = v.data(),
                            .dtype = DType::kBf16,
                            .kv_heads = model.kv_heads,
                            .capacity = tokens,
                            .head_dim = model.head_dim};
    const KvLayerView repeat{.keys = repeat_k.data(),
                             .values = repeat_k.data(),
                             .dtype = DType::kBf16,
                             .kv_heads = model.kv_heads,
                             .capacity = chunk,
                             .head_dim = model.head_dim};
    KVTIER_ASSIGN_OR_RETURN(const Tensor scores,
                            backend().Allocate(DType::kF32, model.kv_heads, chunk));
    const ScoreArgs score{.q = q,
                          .cache = cache,
                          .chunk_begin = tokens - chunk,
                          .chunk_end = tokens,
                          .repeat = repeat,
                          .scale = scale,
                          .out = static_cast<float*>(scores.data()),
                          .out_stride = chunk};
    KVTIER_ASSIGN_OR_RETURN(const double score_seconds,
                            Time([&](int) { return backend().ScoreColumnMax(score); }));
    std::vector<RowSpan> spans(model.kv_heads);
    HeadSpans lists;
    for (uint32_t head = 0; head < model.kv_heads; ++head) {
      const int64_t at = head * tokens * model.head_dim * int64_t{sizeof(bfloat16)};
      spans[head].keys = static_cast<const std::byte*>(k.data()) + at;
      spans[head].values = static_cast<const std::byte*>(v.data()) + at;
      spans[head].rows = static_cast<uint32_t>(tokens);
      lists.push_back(std::span(&spans[head], 1));
    }
    const AttentionArgs attention{.q = q,
                                  .spans = &lists,
                                  .span_dtype = DType::kBf16,
                                  .tail = repeat,
                                  .tail_rows = chunk,
                                  .scale = scale,
                                  .out = out};
    KVTIER_ASSIGN_OR_RETURN(const double attention_seconds,
                            Time([&](int) { return backend().Attention(attention); }));
    const double heads = static_cast<double>(model.kv_heads) * model.group;
    const double keys = static_cast<double>(tokens) + static_cast<double>(chunk) / 2;
    const double flop = 4 * heads * model.head_dim * static_cast<double>(chunk) * keys;
    return Figures{{"score_seconds", score_seconds},
                   {"attention_seconds", attention_seconds},
                   {"attention_flop_per_second", flop / attention_seconds}};
  }

  // A whole compression: prefill, scoring, ranking and packing, with the bands' way to the host.
  absl::StatusOr<Figures> Compress(const BenchModel& model, int64_t tokens) {
    KVTIER_ASSIGN_OR_RETURN(const Model* const loaded, Loaded(model));
    PipelineOptions options;
    options.prefill_rows = target_.prefill_rows;
    const Pipeline pipeline(*loaded, options);
    std::mt19937_64 random(kSeed);
    std::vector<uint32_t> ids(tokens);
    for (uint32_t& id : ids) id = static_cast<uint32_t>(random() % model.vocabulary);
    CompressInput input;
    input.context = ids;
    const auto rows = tokens + static_cast<int64_t>(loaded->profile().prefix.size());
    // With the rows that it has so that contexts share plans.
    const uint64_t cache_bytes = DenseCache::EstimateBytes(
        loaded->config().MakeGeometry(options.kv_dtype), backend().CacheRows(rows));
    Figures figures;
    for (int run = 0; run < 2; ++run) {  // Plans and memory are made in the first.
      KVTIER_RETURN_IF_ERROR(backend().Synchronize());
      KVTIER_ASSIGN_OR_RETURN(const DeviceMemoryUse before, target_.device->MemoryUse());
      StageWatch watch(target_);
      const double start = target_.clock();
      KVTIER_RETURN_IF_ERROR(pipeline
                                 .Compress(
                                     input,
                                     [&watch](const CompressProgress& heard) { watch.Hear(heard); },
                                     CancelToken())
                                 .status());
      KVTIER_RETURN_IF_ERROR(watch.status());
      const double end = target_.clock();
      const double prefill = watch.prefilled - start;
      // Signed, so that a peak below what it must hold would show.
      const auto extra = static_cast<int64_t>(watch.peak_bytes - before.bytes - cache_bytes);
      figures = {{"prefill_seconds", prefill},
                 {"prefill_flop_per_second", PrefillFlop(model, rows) / prefill},
                 {"prefill_and_score_over_prefill", (watch.scored - start) / prefill},
                 {"rank_and_pack_seconds", end - watch.scored},
                 {"compress_seconds", end - start},
                 {"scoring_extra_bytes", static_cast<double>(extra)},
                 {"cache_bytes", static_cast<double>(cache_bytes)},
                 {"weight_bytes", static_cast<double>(loaded->weight_bytes())}};
    }
    return figures;
  }

  // A whole step of decoding, from an object of that many tokens.
  absl::StatusOr<Figures> DecodeStep(const BenchModel& model, int64_t tokens) {
    KVTIER_ASSIGN_OR_RETURN(const double copy_rate, CopyRate());
    KVTIER_ASSIGN_OR_RETURN(const Model* const loaded, Loaded(model));
    return MeasureDecodeStep(
        *loaded, tokens,
        [this](const std::function<absl::Status()>& work) {
          return Time([&work](int) { return work(); });
        },
        target_.runs + 1, copy_rate);
  }

  // The products of one layer over a piece of a prefill.
  absl::StatusOr<Figures> Products(const BenchModel& model) {
    const int64_t q_out = int64_t{model.kv_heads} * model.group * model.head_dim;
    const int64_t kv_out = int64_t{model.kv_heads} * model.head_dim;
    const std::pair<int64_t, int64_t> shapes[] = {{model.hidden, q_out + 2 * kv_out},  // {in, out}
                                                  {q_out, model.hidden},
                                                  {model.hidden, 2 * int64_t{model.mlp}},
                                                  {model.mlp, model.hidden}};
    double seconds = 0;
    double flop = 0;
    for (const auto& [in, out] : shapes) {
      KVTIER_ASSIGN_OR_RETURN(const Tensor weights, RandomTensor(backend(), out, in));
      KVTIER_ASSIGN_OR_RETURN(const auto linear, backend().ShareLinear(weights));
      KVTIER_ASSIGN_OR_RETURN(const Tensor x, RandomTensor(backend(), target_.prefill_rows, in));
      KVTIER_ASSIGN_OR_RETURN(const Tensor y,
                              backend().Allocate(DType::kBf16, target_.prefill_rows, out));
      KVTIER_ASSIGN_OR_RETURN(const double each,
                              Time([&](int) { return backend().Linear(x, *linear, y); }));
      seconds += each;
      flop += 2.0 * static_cast<double>(target_.prefill_rows) * static_cast<double>(in) *
              static_cast<double>(out);
    }
    return Figures{{"seconds_per_layer", seconds}, {"flop_per_second", flop / seconds}};
  }

 private:
  Backend& backend() const { return *target_.backend; }

  // The model with random weights, on the device; what was there before goes first.
  absl::StatusOr<const Model*> Loaded(const BenchModel& model) {
    if (model_ != nullptr && model_name_ == model.name) return model_.get();
    model_.reset();
    const TempDir folder;
    const int64_t longest = *std::max_element(target_.contexts.begin(), target_.contexts.end());
    KVTIER_RETURN_IF_ERROR(WriteRandomCheckpoint(
        {.qwen2 = model.qwen2,
         .hidden = model.hidden,
         .layers = model.layers,
         .q_heads = int64_t{model.kv_heads} * model.group,
         .kv_heads = model.kv_heads,
         .head_dim = model.head_dim,
         .intermediate = model.mlp,
         .vocabulary = model.vocabulary,
         .positions_max =
             longest + 2 * target_.chunk + 100,  // Repeat inputs lie behind the context.
         .chunk_tokens = static_cast<uint32_t>(target_.chunk),
         .seed = kSeed},
        folder.path().string()));
    KVTIER_ASSIGN_OR_RETURN(model_, Model::Load(folder.path().string(), backend()));
    model_name_ = model.name;
    return model_.get();
  }

  const BenchTarget& target_;
  // On the device, as a scoring pass leaves them.
  absl::StatusOr<std::unique_ptr<BackendScores>> RandomScores(const BenchModel& model,
                                                              uint32_t layers,
                                                              int64_t tokens) const {
    ScoreTable scores = ScoreTable::Create(layers, model.kv_heads, static_cast<uint64_t>(tokens));
    std::mt19937_64 random(kSeed);
    std::uniform_real_distribution<float> uniform(-12, 0);
    for (float& score : scores.log_scores) score = uniform(random);
    return PlaceScores(backend(), scores);
  }

  std::optional<double> copy_rate_;
  std::unique_ptr<Model> model_;  // Of the last row that needed one.
  std::string model_name_;
};

}  // namespace

BenchModel Llama31With8B() {
  return {.name = "llama-3.1-8b",
          .layers = 32,
          .kv_heads = 8,
          .group = 4,
          .head_dim = 128,
          .hidden = 4096,
          .mlp = 14336,
          .vocabulary = 128256};
}

BenchModel Qwen25With14B() {
  return {.name = "qwen2.5-14b",
          .qwen2 = true,
          .layers = 48,
          .kv_heads = 8,
          .group = 5,
          .head_dim = 128,
          .hidden = 5120,
          .mlp = 13824,
          .vocabulary = 152064};
}

std::vector<BenchRow> MakeBenchRows(const BenchTarget& target) {
  auto bench = std::make_shared<Bench>(target);
  std::vector<BenchRow> rows;
  rows.push_back({"copy", [bench] { return bench->Copy(); }});
  const auto each = [&](const char* what, const char* which, const auto& measure) {
    for (const BenchModel& model : target.models) {
      for (const int64_t tokens : target.contexts) {
        rows.push_back({absl::StrCat(what, "/", model.name, "/", tokens, which),
                        [measure, model, tokens] { return measure(model, tokens); }});
      }
    }
  };
  each("decode", "/uneven", [bench](const BenchModel& model, int64_t tokens) {
    return bench->Decode(model, FixtureRows(model.kv_heads, tokens));
  });
  each("decode", "/equal", [bench](const BenchModel& model, int64_t tokens) {
    return bench->Decode(model, EqualRows(model.kv_heads, kKeptRatio, tokens));
  });
  each("decode", "/full", [bench](const BenchModel& model, int64_t tokens) {
    return bench->Decode(model, EqualRows(model.kv_heads, 1, tokens));
  });
  each("rank-and-pack", "", [bench](const BenchModel& model, int64_t tokens) {
    return bench->RankAndPack(model, tokens);
  });
  each("score", "",
       [bench](const BenchModel& model, int64_t tokens) { return bench->Score(model, tokens); });
  for (const BenchModel& model : target.models) {  // Each is loaded once.
    for (const int64_t tokens : target.contexts) {
      rows.push_back({absl::StrCat("compress/", model.name, "/", tokens),
                      [bench, model, tokens] { return bench->Compress(model, tokens); }});
    }
    for (const int64_t tokens : target.contexts) {
      rows.push_back({absl::StrCat("decode-step/", model.name, "/", tokens),
                      [bench, model, tokens] { return bench->DecodeStep(model, tokens); }});
    }
  }
  for (const BenchModel& model : target.models) {
    rows.push_back(
        {absl::StrCat("products/", model.name), [bench, model] { return bench->Products(model); }});
  }
  return rows;
}

}  // namespace kvtier
