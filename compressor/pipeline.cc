#include "compressor/pipeline.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "compressor/forward.h"
#include "compressor/packing.h"
#include "compressor/scoring.h"
#include "kvcache/token_block_hash.h"

namespace kvtier {
namespace {

// Canonical text of the recipe in keys and manifests. The number changes whenever the same tokens
// would get other scores or another order. Chunk length and prompts are in the profile's digest.
absl::StatusOr<std::string> CanonicalRecipe(absl::string_view recipe) {
  if (recipe == "kvzip") return std::string("kvzip/1");
  return absl::InvalidArgumentError(
      absl::StrCat("recipe \"", recipe, "\" is unknown; this build knows: kvzip"));
}

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

int64_t ScratchRows(const Model& model, const PipelineOptions& options, uint64_t system_tokens,
                    uint64_t context_tokens) {
  const uint64_t piece = std::min<uint64_t>(options.prefill_rows, system_tokens + context_tokens);
  return static_cast<int64_t>(std::max(piece, model.profile().RepeatRowsMax(context_tokens)));
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
  }
  return "unknown";
}

Pipeline::Pipeline(const Model& model, PipelineOptions options)
    : model_(&model), options_(std::move(options)) {
  KVTIER_CHECK_GT(options_.prefill_rows, 0);
}

absl::StatusOr<KeyDescriptorHead> Pipeline::DescribeKey(const CompressInput& input) const {
  KeyDescriptorHead head;
  KVTIER_ASSIGN_OR_RETURN(head.recipe, CanonicalRecipe(input.recipe));
  head.tenant_salt = input.tenant_salt;
  head.model_digest = model_->digest();
  head.kv_dtype = options_.kv_dtype;
  head.rope = model_->config().RopeFingerprint();
  head.prompt_profile_digest = model_->profile().ComputeDigest();
  head.system_token_ids = SystemIds(*model_, input);
  return head;
}

absl::Status Pipeline::Validate(const CompressInput& input) const {
  KVTIER_RETURN_IF_ERROR(CanonicalRecipe(input.recipe));
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
  const uint64_t repeat_rows = model_->profile().RepeatRowsMax(context_tokens);
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
  const uint64_t system_tokens = SystemIds(*model_, input).size();
  const uint64_t context_tokens = input.context.size();
  const Geometry geometry = model_->config().MakeGeometry(options_.kv_dtype);
  const uint64_t cache =
      DenseCache::EstimateBytes(geometry, static_cast<int64_t>(system_tokens + context_tokens));
  const uint64_t scratch =
      ForwardScratch::EstimateBytes(model_->config(), model_->backend().activation_dtype(),
                                    ScratchRows(*model_, options_, system_tokens, context_tokens));
  const uint64_t scoring = EstimateScoringBytes(*model_, geometry, context_tokens);
  // Ranking adds a byte to the four of each score.
  const uint64_t ranking = geometry.scored_pairs(context_tokens) * (sizeof(float) + 1);
  const uint64_t packed =
      EstimatePackedBytes(geometry, system_tokens, context_tokens, options_.edges);
  return cache + std::max(scratch + scoring, ranking + packed);
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

absl::StatusOr<ScoreTable> Pipeline::FillAndScore(const CompressInput& input, DenseCache& cache,
                                                  const Progress& progress,
                                                  const CancelToken& cancel) const {
  const std::vector<uint32_t> ids = PrefillIds(input);
  const uint64_t context_tokens = input.context.size();
  const uint64_t system_tokens = ids.size() - context_tokens;
  KVTIER_ASSIGN_OR_RETURN(
      ForwardScratch scratch,
      ForwardScratch::Create(*model_,
                             ScratchRows(*model_, options_, system_tokens, context_tokens)));
  // In pieces of our own: the scratch may have more rows, for the repeat pass.
  for (size_t done = 0; done < ids.size();) {
    progress({CompressStage::kPrefill, done, ids.size()});
    KVTIER_RETURN_IF_ERROR(cancel.Check());
    const size_t rows = std::min<size_t>(options_.prefill_rows, ids.size() - done);
    KVTIER_RETURN_IF_ERROR(
        Prefill(*model_, std::span(ids).subspan(done, rows), cache, scratch, nullptr));
    done += rows;
  }
  progress({CompressStage::kPrefill, ids.size(), ids.size()});
  const auto on_chunk = [&](uint64_t done) {
    progress({CompressStage::kScore, done, context_tokens});
  };
  on_chunk(0);
  return ScoreContext(*model_, input.context, static_cast<int64_t>(system_tokens), cache, scratch,
                      cancel, on_chunk);
}

absl::StatusOr<CompressedObject> Pipeline::Compress(const CompressInput& input,
                                                    const Progress& progress,
                                                    const CancelToken& cancel) const {
  KVTIER_RETURN_IF_ERROR(Validate(input));
  const Progress report = progress ? progress : [](const CompressProgress&) {};
  KVTIER_ASSIGN_OR_RETURN(const Manifest identity, DescribeObject(input));
  KVTIER_ASSIGN_OR_RETURN(DenseCache cache,
                          DenseCache::Create(model_->backend(), identity.geometry,
                                             static_cast<int64_t>(identity.logical_length())));
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, FillAndScore(input, cache, report, cancel));

  const uint64_t layers = identity.geometry.layer_count();
  const auto on_layer = [&](int64_t done) {
    report(
        {CompressStage::kPack, identity.context_tokens * done / layers, identity.context_tokens});
    return cancel.Check();
  };
  KVTIER_RETURN_IF_ERROR(on_layer(0));
  KVTIER_ASSIGN_OR_RETURN(
      const BandAssignment assignment,
      AssignBands(scores, options_.edges, /*first_token_first=*/identity.system_tokens == 0));
  return PackObject(model_->backend(), cache, scores, assignment, options_.edges, identity,
                    on_layer, model_->config().window);
}

}  // namespace kvtier
