// Compressing a context, top to bottom: prefill -> repeat each chunk -> score -> rank -> pack.
//   Pipeline pipeline(*model, options);
//   KVTIER_ASSIGN_OR_RETURN(CompressedObject object, pipeline.Compress(input, progress, cancel));
#ifndef KVTIER_COMPRESSOR_PIPELINE_H_
#define KVTIER_COMPRESSOR_PIPELINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/cancel_token.h"
#include "compressor/backend_scores.h"
#include "compressor/dense_cache.h"
#include "compressor/head_scores.h"
#include "compressor/model.h"
#include "compressor/ranking.h"
#include "compressor/value_output_norms.h"
#include "kvcache/bands.h"
#include "kvcache/compressed_object.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/recipe.h"

namespace kvtier {

struct CompressInput {
  std::string tenant_salt = "default";
  std::span<const uint32_t> context;  // Token ids; at least one. The caller keeps them alive.
  // Replaces the profile's prefix when set (may be empty); protected and part of the key.
  std::optional<std::vector<uint32_t>> system;
  std::string recipe;  // As Recipe::ParseRequest reads it; empty: PipelineOptions::recipe.
  // Measure how well the context is repeated at each edge, on at most so many scoring chunks
  // (compressor/fidelity.h), and say so in the manifest. 0: do not. Not part of the key.
  uint32_t fidelity_chunks = 0;
  // Row codec by name ("raw", "int8", "int4"), in the place of the recipe's; empty: the recipe's.
  std::string codec;
};

enum class CompressStage { kPrefill, kScore, kPack, kMeasure };
// "prefill", "scoring", "packing", "measuring"
absl::string_view CompressStageName(CompressStage stage);

// Stages come in order; tokens_done ascends from 0 to tokens_total inside each. On a device, which
// computes by itself, prefill and scoring count what has been enqueued: that is ahead of what has
// been computed, by no more than the device's queue holds. Packing begins when all has been scored.
struct CompressProgress {
  CompressStage stage = CompressStage::kPrefill;
  uint64_t tokens_done = 0;
  uint64_t tokens_total = 0;
};

// Rows of one prefill piece where the options leave it open. On a CPU products run at their full
// rate from a few hundred rows on, and a piece is what a cancelled compression still finishes. On a
// device a piece reads all weights and launches every kernel once, whatever its size, and attention
// has blocks for every multiprocessor only with some thousand rows; more rows are more scratch.
inline constexpr int64_t kHostPrefillRows = 512;
inline constexpr int64_t kDevicePrefillRows = 2048;

struct PipelineOptions {
  DType kv_dtype = DType::kBf16;
  BandEdges edges = BandEdges::Default();
  int64_t prefill_rows = 0;         // Of one prefill piece; 0: as the backend is, see above.
  uint64_t context_tokens_max = 0;  // 0: only the model's positions bound it.
  std::string recipe = "kvzip";     // For inputs that name none.
  // What recipe head ranks by; null: that recipe is refused. Must be of the pipeline's model.
  std::shared_ptr<const HeadScores> head_scores = nullptr;
};

// What Pipeline::Score returns.
struct ScoredContext {
  Recipe recipe;
  uint64_t first_position = 0;  // Of the table's first token: 0 where the system prompt is ranked.
  ScoreTable scores;            // [scored layers, kv_heads, ranked tokens]
  std::vector<float> last_logits;  // [vocabulary], after the context's last token.
};

// Thread-safe: several Compress calls may run at once, each with its own memory. Does not own the
// model, which must outlive it.
class Pipeline {
 public:
  Pipeline(const Model& model, PipelineOptions options);

  const Model& model() const { return *model_; }
  const PipelineOptions& options() const { return options_; }

  // The recipe that `input` asks for, complete. INVALID_ARGUMENT: unknown (names the known ones),
  // or recipe head without scores of this model, or with others than the input names; an unknown
  // codec (names the known ones).
  absl::StatusOr<Recipe> ResolveRecipe(const CompressInput& input) const;

  // The key head of this model, profile, recipe and dtype. INVALID_ARGUMENT as ResolveRecipe.
  absl::StatusOr<KeyDescriptorHead> DescribeKey(const CompressInput& input) const;

  // Everything that can be refused before any work: empty context, id out of range (names the
  // index), too long for the limit or, with the repeat pass that most recipes need, for the model's
  // positions; a recipe that cannot be had. All INVALID_ARGUMENT.
  absl::Status Validate(const CompressInput& input) const;

  // Bytes that Compress will allocate at its peak: dense cache, scratch, scores, packed object.
  // Within 10 % of what it really takes; for admission before any work. REQUIRES: Validate(input)
  // is ok.
  uint64_t EstimateBytes(const CompressInput& input) const;

  // Blocks until done. `progress` (may be empty) is called from this thread. The object carries a
  // fresh upload id.
  //   INVALID_ARGUMENT    as Validate; or a score that is not finite (named)
  //   RESOURCE_EXHAUSTED  memory cannot be had
  //   CANCELLED           soon after `cancel` fires: between prefill pieces, chunks, packed layers
  absl::StatusOr<CompressedObject> Compress(
      const CompressInput& input, const std::function<void(const CompressProgress&)>& progress,
      const CancelToken& cancel) const;

  // Scores without packing anything: prefill and scoring alone. Errors as Compress.
  absl::StatusOr<ScoredContext> Score(const CompressInput& input,
                                      const std::function<void(const CompressProgress&)>& progress,
                                      const CancelToken& cancel) const;

 private:
  using Progress = std::function<void(const CompressProgress&)>;

  // system ++ context.
  std::vector<uint32_t> PrefillIds(const CompressInput& input) const;
  absl::StatusOr<Manifest> DescribeObject(const CompressInput& input) const;
  // With room for a context and its system prompt, `rows` together, or more.
  absl::StatusOr<DenseCache> MakeCache(const Geometry& geometry, uint64_t rows) const;
  // Prefill into `cache`, then score it. Scratch memory is gone when this returns. Writes the
  // logits after the last token to `last_logits` unless it is empty.
  absl::StatusOr<std::unique_ptr<BackendScores>> FillAndScore(
      const CompressInput& input, const Recipe& recipe, DenseCache& cache, const Progress& progress,
      const CancelToken& cancel, std::span<float> last_logits) const;
  // Adds fidelity to the manifest of a packed object.
  absl::Status Measure(const CompressInput& input, CompressedObject& object, const Progress& report,
                       const CancelToken& cancel) const;

  const Model* model_;
  PipelineOptions options_;
  LazyValueOutputNorms norms_;  // For recipe kvzip+.
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_PIPELINE_H_
