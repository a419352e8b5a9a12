#include "compressor/decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/activations.h"

namespace kvtier {
namespace {

// Rows of one pass: enough for the matrix products to be efficient; a longer query takes several.
constexpr int64_t kPieceRowsMax = 128;

int64_t ScratchRows(int64_t tail_tokens) { return std::min(tail_tokens, kPieceRowsMax); }

absl::Status CheckSameModel(const Model& model, const Manifest& manifest, HeadRange heads) {
  if (manifest.model_digest != model.digest()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the object was made by model ", manifest.model_name, " (", manifest.model_digest.ToHex(),
        "), this is ", model.name(), " (", model.digest().ToHex(), ")"));
  }
  const Geometry expected = model.config().MakeGeometry(manifest.geometry.dtype);
  if (manifest.geometry != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("the object has ", manifest.geometry.layer_count(), " layers x ",
                     manifest.geometry.kv_heads, " heads x ", manifest.geometry.head_dim,
                     ", model ", model.name(), " has ", expected.layer_count(), " x ",
                     expected.kv_heads, " x ", expected.head_dim));
  }
  if (heads != HeadRange{0, expected.kv_heads}) {
    return absl::FailedPreconditionError(absl::StrCat("decoding needs all ", expected.kv_heads,
                                                      " KV heads, the cache holds [", heads.begin,
                                                      ", ", heads.end, ")"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const Model& model,
                                                         std::shared_ptr<const ResidentCache> cache,
                                                         int64_t tail_tokens, StepMode steps) {
  KVTIER_RETURN_IF_ERROR(CheckSameModel(model, cache->manifest(), cache->heads()));
  if (!cache->IsReadableBy(model.backend())) {
    return absl::FailedPreconditionError(
        absl::StrCat("the object lies in other memory than that of ", model.backend().name(),
                     ", which model ", model.name(), " computes on"));
  }
  if (tail_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a tail of ", tail_tokens, " tokens"));
  }
  KVTIER_ASSIGN_OR_RETURN(DenseCache tail,
                          DenseCache::Create(model.backend(), cache->geometry(), tail_tokens));
  KVTIER_ASSIGN_OR_RETURN(ForwardScratch scratch,
                          ForwardScratch::Create(model, ScratchRows(tail_tokens)));
  std::unique_ptr<Decoder> decoder(
      new Decoder(model, std::move(cache), std::move(tail), std::move(scratch)));
  if (steps != StepMode::kPlain) {
    KVTIER_RETURN_IF_ERROR(decoder->MakeStep(steps == StepMode::kReplayed));
  }
  return decoder;
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const Model& model,
                                                         std::shared_ptr<const RaggedCache> cache,
                                                         int64_t tail_tokens) {
  // Before its bytes go anywhere.
  KVTIER_RETURN_IF_ERROR(CheckSameModel(model, cache->manifest(), cache->heads()));
  KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<const ResidentCache> resident,
                          ResidentCache::Create(model.backend(), std::move(cache)));
  return Create(model, std::move(resident), tail_tokens);
}

Decoder::Decoder(const Model& model, std::shared_ptr<const ResidentCache> cache, DenseCache tail,
                 ForwardScratch scratch)
    : model_(&model),
      cache_(std::move(cache)),
      tail_(std::move(tail)),
      scratch_(std::move(scratch)),
      logits_(model.config().vocabulary) {}

absl::Status Decoder::MakeStep(bool replay) {
  DecodeSteps* const steps = model_->backend().decode_steps();
  if (steps == nullptr || cache_->prepared() == nullptr) return absl::OkStatus();
  const ModelConfig& config = model_->config();
  DecodeStepSpec spec;
  spec.rows = cache_->prepared();
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    spec.tails.push_back(tail_.layer(layer));
    spec.windows.push_back(config.layer_window(layer));
  }
  spec.group = config.q_heads / config.kv_heads;
  spec.scale = config.softmax_scale();
  spec.vocabulary = config.vocabulary;
  spec.replay = replay;
  KVTIER_ASSIGN_OR_RETURN(step_, steps->Create(spec));
  return absl::OkStatus();
}

uint64_t Decoder::EstimateBytes(const Model& model, int64_t tail_tokens, DType kv_dtype) {
  return DenseCache::EstimateBytes(model.config().MakeGeometry(kv_dtype), tail_tokens) +
         ForwardScratch::EstimateBytes(model.config(), model.backend().activation_dtype(),
                                       ScratchRows(tail_tokens));
}

absl::Status Decoder::CheckFits(std::span<const uint32_t> ids) const {
  if (ids.empty()) return absl::InvalidArgumentError("no tokens to append");
  const int64_t rows = static_cast<int64_t>(ids.size());
  if (rows > tail_.capacity() - tail_.length()) {
    return absl::ResourceExhaustedError(absl::StrCat("question and answer have room for ",
                                                     tail_.capacity(), " tokens; ", tail_.length(),
                                                     " are used, ", rows, " more do not fit"));
  }
  const int64_t end =
      static_cast<int64_t>(cache_->manifest().logical_length()) + tail_.length() + rows;
  if (end > model_->config().positions_max) {
    return absl::InvalidArgumentError(absl::StrCat("position ", end - 1, " is past the last (",
                                                   model_->config().positions_max - 1,
                                                   ") of model ", model_->name()));
  }
  // Checked here as well as in Forward, so that a late piece cannot fail after an early one.
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < static_cast<uint64_t>(model_->config().vocabulary)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", i, " is ", ids[i], ", the vocabulary has ", model_->config().vocabulary, " ids"));
  }
  return absl::OkStatus();
}

absl::Status Decoder::Run(std::span<const uint32_t> ids, std::vector<float>* all) {
  KVTIER_RETURN_IF_ERROR(CheckFits(ids));
  if (step_ != nullptr && ids.size() == 1 && all == nullptr) return RunStep(ids[0]);
  const int64_t length_before = tail_.length();
  ForwardPlan plan;
  plan.spans = [this](int64_t layer) { return &cache_->spans(layer); };  // Small: no allocation.
  plan.tail = &tail_;
  for (size_t begin = 0; begin < ids.size();) {
    const size_t rows = std::min<size_t>(ids.size() - begin, scratch_.rows_max());
    const bool last = begin + rows == ids.size();
    plan.first_position =
        static_cast<int64_t>(cache_->manifest().logical_length()) + tail_.length();
    const std::span<float> logits = last ? std::span<float>(logits_) : std::span<float>();
    const absl::Status status = Forward(*model_, ids.subspan(begin, rows), plan, scratch_, logits,
                                        all != nullptr ? &all_logits_ : nullptr);
    if (!status.ok()) {
      tail_.SetLength(length_before);
      return status;
    }
    if (all != nullptr) all->insert(all->end(), all_logits_.begin(), all_logits_.end());
    begin += rows;
  }
  return absl::OkStatus();
}

absl::Status Decoder::RunStep(uint32_t id) {
  const int64_t row = tail_.length();
  const StepState state{.token = id,
                        .position = static_cast<int64_t>(cache_->manifest().logical_length()) + row,
                        .tail_row = row};
  KVTIER_RETURN_IF_ERROR(
      step_->Run(state, [this] { return ForwardStep(*model_, *step_, scratch_); }));
  KVTIER_RETURN_IF_ERROR(DownloadFloats(model_->backend(), scratch_.logits, logits_));
  tail_.SetLength(row + 1);
  return absl::OkStatus();
}

absl::StatusOr<std::span<const float>> Decoder::Append(std::span<const uint32_t> ids) {
  KVTIER_RETURN_IF_ERROR(Run(ids, nullptr));
  return std::span<const float>(logits_);
}

absl::StatusOr<std::vector<float>> Decoder::AppendAllLogits(std::span<const uint32_t> ids) {
  std::vector<float> all;
  all.reserve(ids.size() * logits_.size());
  KVTIER_RETURN_IF_ERROR(Run(ids, &all));
  return all;
}

}  // namespace kvtier
