// kvtier-bench compute. FLOPs are counted as in docs/performance.md: linear layers and attention,
// multiply-add = 2.

#include <random>

#include "base/cancel_token.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "bench/suite.h"
#include "compressor/cpu_backend.h"
#include "compressor/decoder.h"
#include "compressor/pipeline.h"
#include "kvcache/ragged_view.h"

namespace kvtier::bench {
namespace {

// Rate of one matrix product [rows, width] x [width, width] in fp32, in GFLOP/s.
absl::StatusOr<double> MatmulRate(Backend& backend, int64_t rows, int64_t width, int runs) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> weights(static_cast<size_t>(width * width));
  for (float& w : weights) w = normal(random);
  KVTIER_ASSIGN_OR_RETURN(
      const auto prepared,
      backend.PrepareLinear(std::as_bytes(std::span(weights)), DType::kF32, width, width));
  KVTIER_ASSIGN_OR_RETURN(const Tensor x, backend.Allocate(DType::kF32, rows, width));
  KVTIER_ASSIGN_OR_RETURN(const Tensor y, backend.Allocate(DType::kF32, rows, width));
  KVTIER_RETURN_IF_ERROR(backend.Upload(
      std::as_bytes(std::span(weights).first(static_cast<size_t>(rows * width))), x));
  constexpr int kProducts = 20;  // One product is too short to time.
  KVTIER_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(runs, [&]() -> absl::Status {
                            for (int i = 0; i < kProducts; ++i) {
                              KVTIER_RETURN_IF_ERROR(backend.Linear(x, *prepared, y));
                            }
                            return backend.Synchronize();
                          }));
  return 2e-9 * kProducts * static_cast<double>(rows) * static_cast<double>(width) *
         static_cast<double>(width) / seconds;
}

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

}  // namespace

absl::StatusOr<std::vector<Figure>> RunComputeSuite(const std::string& model_folder,
                                                    int context_tokens, int runs) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend();
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(model_folder, *backend));
  const ModelConfig& config = model->config();
  const PromptProfile& profile = model->profile();
  KVTIER_ASSIGN_OR_RETURN(const double matmul, MatmulRate(*backend, 512, 2048, runs));
  KVTIER_ASSIGN_OR_RETURN(const double matmul_model,
                          MatmulRate(*backend, 512, config.hidden, runs));

  std::mt19937_64 random(2);
  std::vector<uint32_t> context(static_cast<size_t>(context_tokens));
  for (uint32_t& id : context) id = static_cast<uint32_t>(random() % 256);
  const Pipeline pipeline(*model, PipelineOptions{});
  CompressInput input;
  input.context = context;

  // Stage times of every run, from the progress reports.
  std::vector<double> prefill, scoring;
  CompressedObject object;
  for (int run = 0; run <= runs; ++run) {
    absl::Time begin = Clock::Real().Now();
    absl::Time prefilled, scored;
    const CancelToken cancel;
    KVTIER_ASSIGN_OR_RETURN(object, pipeline.Compress(
                                        input,
                                        [&](const CompressProgress& progress) {
                                          if (progress.tokens_done != progress.tokens_total) return;
                                          const absl::Time now = Clock::Real().Now();
                                          if (progress.stage == CompressStage::kPrefill) {
                                            prefilled = now;
                                          } else if (progress.stage == CompressStage::kScore) {
                                            scored = now;
                                          }
                                        },
                                        cancel));
    if (run == 0) continue;  // Warm-up.
    prefill.push_back(absl::ToDoubleSeconds(prefilled - begin));
    scoring.push_back(absl::ToDoubleSeconds(scored - prefilled));
  }
  const auto median = [](std::vector<double> v) {
    std::nth_element(v.begin(), v.begin() + static_cast<long>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };

  const double n = context_tokens;
  const double system = static_cast<double>(profile.prefix.size());
  const double rows = n + system;
  const double prefill_flops =
      2 * LinearParameters(config) * rows + AttentionFlops(config, (rows + 1) / 2) * rows;
  double repeat_flops = 0;
  for (uint32_t t = 0; t < profile.ChunkCount(context.size()); ++t) {
    const PromptProfile::Chunk chunk = profile.ChunkAt(context.size(), t);
    const double q = static_cast<double>(profile.RepeatInput(context, t).size());
    const double m = static_cast<double>(chunk.end - chunk.begin);
    // Two-pass score: a product for the normaliser over {system, chunk, causal repeat rows}, one
    // more over the chunk. One product of Q and K is half of AttentionFlops.
    repeat_flops += 2 * LinearParameters(config) * q +
                    AttentionFlops(config, rows + (q + 1) / 2) * q +
                    AttentionFlops(config, system + 2 * m + q / 2) / 2 * q;
  }

  // Decode over the object at two ratios.
  std::vector<Figure> figures = {
      {"matmul 512x2048x2048 fp32", matmul, "GFLOP/s"},
      {"matmul at the model's width", matmul_model, "GFLOP/s", matmul, "matmul 2048"},
      {"prefill", n / median(prefill), "tokens/s"},
      {"prefill, FLOP rate", 1e-9 * prefill_flops / median(prefill), "GFLOP/s", matmul,
       "matmul 2048"},
      {"scoring", n / median(scoring), "tokens/s"},
      {"scoring, FLOP rate", 1e-9 * repeat_flops / median(scoring), "GFLOP/s", matmul,
       "matmul 2048"},
      {"scoring / prefill time", median(scoring) / median(prefill), "x",
       repeat_flops / prefill_flops, "the FLOP ratio"},
  };
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
    KVTIER_ASSIGN_OR_RETURN(const auto decoder, Decoder::Create(*model, cache, kSteps));
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
    figures.push_back({"decode at ratio " + cache->ratio().ToString(), rate, "tokens/s",
                       rate == full_rate ? 0 : full_rate, "ratio 1"});
  }
  return figures;
}

}  // namespace kvtier::bench
