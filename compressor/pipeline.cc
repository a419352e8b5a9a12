#include "compressor/pipeline.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "compressor/fidelity.h"
#include "compressor/forward.h"
#include "compressor/packer.h"
#include "compressor/packing.h"
#include "compressor/recipe_scores.h"
#include "kvcache/token_block_hash.h"

namespace kvtier {
namespace {

absl::Status CheckIds(absl::string_view what, std::span<const uint32_t> ids, int64_t vocabulary) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < static_cast<uint64_t>(vocabulary)) continue;
    return absl::InvalidArgumentError(absl::StrCat(what, " token ", i, " is ", ids[i],
                                                   ", the vocabulary has ", vocabulary, " ids"));
  }
  return absl::OkStatus();
}

const std::vector<uint32_t>& SystemIds(const Model& model, const CompressInput& input) {
  return input.system.has_value() ? *input.system : model.profile().prefix;
}

// Rows of the longest repeat input, if there is any.
uint64_t RepeatRows(const Model& model, const Recipe& recipe, uint64_t context_tokens) {
  return recipe.repeats_context() ? model.profile().RepeatRowsMax(context_tokens) : 0;
}

int64_t ScratchRows(const Model& model, const PipelineOptions& options, const Recipe& recipe,
                    uint64_t system_tokens, uint64_t context_tokens) {
  const uint64_t piece = std::min<uint64_t>(options.prefill_rows, system_tokens + context_tokens);
  return static_cast<int64_t>(std::max(piece, RepeatRows(model, recipe, context_tokens)));
}

}  // namespace

absl::string_view CompressStageName(CompressStage stage) {
  switch (stage) {
    case CompressStage::kPrefill:
      return "prefill";
    case CompressStage::kScore:
      return "scoring";
    case CompressStage::kPack:
      return "packing";
    case CompressStage::kMeasure:
      return "measuring";
  }
  return "unknown";
}

Pipeline::Pipeline(const Model& model, PipelineOptions options)
    : model_(&model), options_(std::move(options)), norms_(model) {
  if (options_.prefill_rows == 0) {
    options_.prefill_rows =
        model.backend().host_addressable() ? kHostPrefillRows : kDevicePrefillRows;
  }
  KVTIER_CHECK_GT(options_.prefill_rows, 0);
}

absl::StatusOr<Recipe> Pipeline::ResolveRecipe(const CompressInput& input) const {
  const std::string& text = input.recipe.empty() ? options_.recipe : input.recipe;
  KVTIER_ASSIGN_OR_RETURN(Recipe recipe, Recipe::ParseRequest(text));
  if (!input.codec.empty()) {
    KVTIER_ASSIGN_OR_RETURN(recipe.row_codec, CodecFromName(input.codec));
  }
  if (recipe.scorer != Scorer::kHead) return recipe;
  const HeadScores* scores = options_.head_scores.get();
  if (scores == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "recipe \"", text, "\": no head scores of model ", model_->name(), " are loaded"));
  }
  KVTIER_RETURN_IF_ERROR(
      scores->CheckFits(*model_, model_->config().MakeGeometry(options_.kv_dtype)));
  if (!recipe.head_scores.IsZero() && recipe.head_scores != scores->file_digest) {
    return absl::InvalidArgumentError(absl::StrCat("recipe \"", text,
                                                   "\": the head scores loaded here have digest ",
                                                   scores->file_digest.ToHex()));
  }
  recipe.head_scores = scores->file_digest;
  return recipe;
}

absl::StatusOr<KeyDescriptorHead> Pipeline::DescribeKey(const CompressInput& input) const {
  KeyDescriptorHead head;
  KVTIER_ASSIGN_OR_RETURN(const Recipe recipe, ResolveRecipe(input));
  head.recipe = recipe.ToString();
  head.tenant_salt = input.tenant_salt;
  head.model_digest = model_->digest();
  head.kv_dtype = options_.kv_dtype;
  head.rope = model_->config().RopeFingerprint();
  head.prompt_profile_digest = model_->profile().ComputeDigest();
  head.system_token_ids = SystemIds(*model_, input);
  return head;
}

absl::Status Pipeline::Validate(const CompressInput& input) const {
  KVTIER_ASSIGN_OR_RETURN(const Recipe recipe, ResolveRecipe(input));
  const std::vector<uint32_t>& system = SystemIds(*model_, input);
  const uint64_t system_tokens = system.size();
  const uint64_t context_tokens = input.context.size();
  if (context_tokens == 0) return absl::InvalidArgumentError("the context is empty");
  if (system_tokens > limits::kSystemTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat("the system prompt has ", system_tokens,
                                                   " tokens, at most ", limits::kSystemTokensMax));
  }
  uint64_t tokens_max = limits::kContextTokensMax;
  if (options_.context_tokens_max > 0) {
    tokens_max = std::min(tokens_max, options_.context_tokens_max);
  }
  if (context_tokens > tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("the context has ", context_tokens, " tokens, at most ", tokens_max));
  }
  // Measuring fidelity repeats chunks too, whatever the recipe does.
  const uint64_t repeat_rows = input.fidelity_chunks > 0
                                   ? model_->profile().RepeatRowsMax(context_tokens)
                                   : RepeatRows(*model_, recipe, context_tokens);
  const uint64_t positions = system_tokens + context_tokens + repeat_rows;
  const uint64_t positions_max = static_cast<uint64_t>(model_->config().positions_max);
  if (positions > positions_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("the context needs ", positions, " positions (", system_tokens,
                     " of the system prompt, ", context_tokens, " of the context, ", repeat_rows,
                     " of the repeat pass), model ", model_->name(), " has ", positions_max));
  }
  KVTIER_RETURN_IF_ERROR(CheckIds("system prompt", system, model_->config().vocabulary));
  return CheckIds("context", input.context, model_->config().vocabulary);
}

uint64_t Pipeline::EstimateBytes(const CompressInput& input) const {
  const absl::StatusOr<Recipe> resolved = ResolveRecipe(input);
  const Recipe recipe = resolved.ok() ? *resolved : Recipe();
  const uint64_t system_tokens = SystemIds(*model_, input).size();
  const uint64_t context_tokens = input.context.size();
  const Geometry geometry = model_->config().MakeGeometry(options_.kv_dtype);
  const uint64_t cache = DenseCache::EstimateBytes(
      geometry, model_->backend().CacheRows(static_cast<int64_t>(system_tokens + context_tokens)));
  const uint64_t scratch = ForwardScratch::EstimateBytes(
      model_->config(), model_->backend().activation_dtype(),
      ScratchRows(*model_, options_, recipe, system_tokens, context_tokens));
  const uint64_t scoring =
      EstimateScoringBytes(recipe, *model_, geometry, system_tokens, context_tokens);
  const uint64_t pairs =
      geometry.scored_pairs(RankedTokens(recipe.selection(), system_tokens, context_tokens));
  const PairBytes pair_bytes = PairBytesOf(model_->backend());
  const uint64_t ranking = pairs * (sizeof(float) + pair_bytes.ranking);
  const uint64_t ranked = pairs * (sizeof(float) + pair_bytes.ranked);
  const uint64_t packed =
      EstimatePackedBytes(geometry, system_tokens, context_tokens, options_.edges, recipe.row_codec,
                          model_->config().window);
  // Measured where the model computes: a device has a copy of the object then.
  const uint64_t measuring =
      input.fidelity_chunks == 0
          ? 0
          : EstimateFidelityBytes(*model_, context_tokens, options_.kv_dtype) +
                (model_->backend().host_addressable() ? 0 : packed);
  return cache + std::max({scratch + scoring, ranking, std::max(ranked, measuring) + packed});
}

std::vector<uint32_t> Pipeline::PrefillIds(const CompressInput& input) const {
  std::vector<uint32_t> ids = SystemIds(*model_, input);
  ids.insert(ids.end(), input.context.begin(), input.context.end());
  return ids;
}

absl::StatusOr<Manifest> Pipeline::DescribeObject(const CompressInput& input) const {
  KVTIER_ASSIGN_OR_RETURN(const KeyDescriptorHead head, DescribeKey(input));
  Manifest manifest;
  KVTIER_ASSIGN_OR_RETURN(manifest.key, ComputeKey(head, input.context));
  manifest.upload_id = MakeUploadId();
  manifest.model_name = model_->name();
  manifest.model_digest = head.model_digest;
  manifest.recipe = head.recipe;
  manifest.prompt_profile_digest = head.prompt_profile_digest;
  manifest.geometry = model_->config().MakeGeometry(options_.kv_dtype);
  manifest.system_tokens = head.system_token_ids.size();
  manifest.context_tokens = input.context.size();
  KVTIER_ASSIGN_OR_RETURN(const Digest head_digest, ComputeHeadDigest(head));
  const std::vector<TokenBlockHash> hashes = ComputeTokenBlockHashes(head_digest, input.context);
  if (!hashes.empty()) manifest.last_block_hash = hashes.back();
  return manifest;
}

absl::StatusOr<DenseCache> Pipeline::MakeCache(const Geometry& geometry, uint64_t rows) const {
  Backend& backend = model_->backend();
  return DenseCache::Create(backend, geometry, backend.CacheRows(static_cast<int64_t>(rows)));
}

absl::StatusOr<std::unique_ptr<BackendScores>> Pipeline::FillAndScore(
    const CompressInput& input, const Recipe& recipe, DenseCache& cache, const Progress& progress,
    const CancelToken& cancel, std::span<float> last_logits) const {
  const std::vector<uint32_t> ids = PrefillIds(input);
  const uint64_t context_tokens = input.context.size();
  const uint64_t system_tokens = ids.size() - context_tokens;
  KVTIER_ASSIGN_OR_RETURN(
      ForwardScratch scratch,
      ForwardScratch::Create(
          *model_, ScratchRows(*model_, options_, recipe, system_tokens, context_tokens)));
  // In pieces of our own: the scratch may have more rows, for the repeat pass. Where its logits are
  // wanted, the last token is a piece of its own.
  const size_t whole = ids.size() - (last_logits.empty() ? 0 : 1);
  for (size_t done = 0; done < whole;) {
    progress({CompressStage::kPrefill, done, ids.size()});
    KVTIER_RETURN_IF_ERROR(cancel.Check());
    const size_t rows = std::min<size_t>(options_.prefill_rows, whole - done);
    const ForwardPlan plan{.odd_rows = static_cast<int64_t>(rows) < options_.prefill_rows,
                           .tail = &cache,
                           .first_position = cache.length()};
    KVTIER_RETURN_IF_ERROR(
        Forward(*model_, std::span(ids).subspan(done, rows), plan, scratch, /*logits=*/{}));
    model_->CountPrefilled(rows);
    done += rows;
  }
  if (!last_logits.empty()) {
    const ForwardPlan plan{.tail = &cache, .first_position = cache.length()};
    KVTIER_RETURN_IF_ERROR(
        Forward(*model_, std::span(ids).subspan(whole), plan, scratch, last_logits));
    model_->CountPrefilled(1);
  }
  progress({CompressStage::kPrefill, ids.size(), ids.size()});
  const auto on_chunk = [&](uint64_t done) {
    progress({CompressStage::kScore, done, context_tokens});
  };
  on_chunk(0);
  const RecipeInputs inputs = {.head_scores = options_.head_scores.get(), .norms = &norms_};
  return ScoreByRecipe(recipe, inputs, *model_, input.context, static_cast<int64_t>(system_tokens),
                       cache, scratch, cancel, on_chunk);
}

absl::StatusOr<ScoredContext> Pipeline::Score(const CompressInput& input, const Progress& progress,
                                              const CancelToken& cancel) const {
  KVTIER_RETURN_IF_ERROR(Validate(input));
  ScoredContext result;
  KVTIER_ASSIGN_OR_RETURN(result.recipe, ResolveRecipe(input));
  const uint64_t system_tokens = SystemIds(*model_, input).size();
  if (ProtectsSystemPrompt(result.recipe.selection())) result.first_position = system_tokens;
  KVTIER_ASSIGN_OR_RETURN(DenseCache cache,
                          MakeCache(model_->config().MakeGeometry(options_.kv_dtype),
                                    system_tokens + input.context.size()));
  result.last_logits.resize(static_cast<size_t>(model_->config().vocabulary));
  const Progress report = progress ? progress : [](const CompressProgress&) {};
  KVTIER_ASSIGN_OR_RETURN(
      result.scores,
      ReadScores(FillAndScore(input, result.recipe, cache, report, cancel, result.last_logits)));
  return result;
}

absl::StatusOr<CompressedObject> Pipeline::Compress(const CompressInput& input,
                                                    const Progress& progress,
                                                    const CancelToken& cancel) const {
  KVTIER_RETURN_IF_ERROR(Validate(input));
  const Progress report = progress ? progress : [](const CompressProgress&) {};
  KVTIER_ASSIGN_OR_RETURN(const Recipe recipe, ResolveRecipe(input));
  KVTIER_ASSIGN_OR_RETURN(const Manifest identity, DescribeObject(input));
  KVTIER_ASSIGN_OR_RETURN(DenseCache cache,
                          MakeCache(identity.geometry, identity.logical_length()));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<BackendScores> scores,
                          FillAndScore(input, recipe, cache, report, cancel, /*last_logits=*/{}));

  const uint64_t layers = identity.geometry.layer_count();
  const auto on_layer = [&](int64_t done) {
    report(
        {CompressStage::kPack, identity.context_tokens * done / layers, identity.context_tokens});
    return cancel.Check();
  };
  KVTIER_RETURN_IF_ERROR(on_layer(0));
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<RankedRows> ranked,
      RankRows(model_->backend(), {.scores = scores.get(),
                                   .edges = &options_.edges,
                                   .rule = recipe.selection(),
                                   .system_prompt = identity.system_tokens > 0}));
  KVTIER_ASSIGN_OR_RETURN(CompressedObject object,
                          PackObject(model_->backend(), cache, *ranked, options_.edges, identity,
                                     on_layer, model_->config().window));
  if (input.fidelity_chunks > 0) {
    KVTIER_RETURN_IF_ERROR(Measure(input, object, report, cancel));
  }
  return object;
}

absl::Status Pipeline::Measure(const CompressInput& input, CompressedObject& object,
                               const Progress& report, const CancelToken& cancel) const {
  const uint64_t total =
      FidelityTokens(model_->profile(), input.context.size(), input.fidelity_chunks) *
      options_.edges.size();
  const auto on_tokens = [&](uint64_t done) { report({CompressStage::kMeasure, done, total}); };
  on_tokens(0);
  Manifest manifest = *object.manifest;
  KVTIER_ASSIGN_OR_RETURN(
      manifest.fidelity,
      MeasureFidelity(*model_, object, input.context, input.fidelity_chunks, on_tokens, cancel));
  KVTIER_RETURN_IF_ERROR(manifest.Validate());
  object.manifest = std::make_shared<const Manifest>(std::move(manifest));
  return absl::OkStatus();
}

}  // namespace kvtier
