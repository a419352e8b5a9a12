#include "services/compressor_service.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// Bound on one question to the store; a longer silence is an answer too.
constexpr absl::Duration kStoreLookupTimeout = absl::Seconds(10);
// Bound on one upload. A dead store fails earlier, by keepalive.
constexpr absl::Duration kUploadTimeout = absl::Minutes(30);

// The pipeline's view of a request. Points into the request, which must outlive it.
CompressInput MakeInput(const v1::CompressRequest& request) {
  CompressInput input;
  input.context = {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())};
  if (request.has_system()) {
    input.system.emplace(request.system().token_ids().begin(), request.system().token_ids().end());
  }
  if (!request.recipe().empty()) input.recipe = request.recipe();
  input.fidelity_chunks = request.fidelity_chunks();
  input.codec = request.codec();
  return input;
}

v1::CompressStage ToProto(CompressStage stage) {
  switch (stage) {
    case CompressStage::kPrefill:
      return v1::COMPRESS_STAGE_PREFILL;
    case CompressStage::kScore:
      return v1::COMPRESS_STAGE_SCORING;
    case CompressStage::kPack:
      return v1::COMPRESS_STAGE_PACKING;
    case CompressStage::kMeasure:
      return v1::COMPRESS_STAGE_MEASURING;
  }
  return v1::COMPRESS_STAGE_UNSPECIFIED;
}

// The longest context with the model's own system prompt whose repeat pass still has positions.
uint64_t LongestContext(const Pipeline& pipeline) {
  const PromptProfile& profile = pipeline.model().profile();
  const uint64_t positions = static_cast<uint64_t>(pipeline.model().config().positions_max);
  uint64_t tokens = std::min<uint64_t>(positions, limits::kContextTokensMax);
  if (const uint64_t limit = pipeline.options().context_tokens_max; limit != 0) {
    tokens = std::min(tokens, limit);
  }
  while (tokens > 0 && profile.prefix.size() + tokens + profile.RepeatRowsMax(tokens) > positions) {
    --tokens;
  }
  return tokens;
}

// An answer of the store, for the compressor's caller: who cannot be reached must be clear.
absl::Status FromStore(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return status;
  return absl::UnavailableError(absl::StrCat("the store cannot be reached: ", status.message()));
}

// Whether an object survives what `asked` names. Unspecified leaves it to the store.
bool IsDurable(const v1::ObjectSummary& object, v1::Durability asked) {
  return asked != v1::DURABILITY_DISK || object.durability() == v1::DURABILITY_DISK;
}

// Measures how long each stage took, from the order in which stages report.
class StageTimer {
 public:
  explicit StageTimer(Clock& clock) : clock_(clock), begin_(clock.Now()) {}
  void Enter(v1::CompressStage stage) {
    if (stage == stage_) return;
    Leave();
    stage_ = stage;
  }
  v1::CompressTimings Finish() {
    Leave();
    return timings_;
  }

 private:
  void Leave() {
    const absl::Time now = clock_.Now();
    const double seconds = absl::ToDoubleSeconds(now - begin_);
    begin_ = now;
    if (stage_ == v1::COMPRESS_STAGE_PREFILL) timings_.set_prefill_seconds(seconds);
    if (stage_ == v1::COMPRESS_STAGE_SCORING) timings_.set_scoring_seconds(seconds);
    if (stage_ == v1::COMPRESS_STAGE_PACKING) timings_.set_packing_seconds(seconds);
    if (stage_ == v1::COMPRESS_STAGE_MEASURING) timings_.set_measuring_seconds(seconds);
    if (stage_ == v1::COMPRESS_STAGE_UPLOAD) timings_.set_upload_seconds(seconds);
  }

  Clock& clock_;
  absl::Time begin_;
  v1::CompressStage stage_ = v1::COMPRESS_STAGE_UNSPECIFIED;
  v1::CompressTimings timings_;
};

}  // namespace

CompressorService::CompressorService(Options options, const std::vector<const Model*>& models,
                                     StoreClient& store, Metrics& metrics, Clock& clock)
    : on_stored_(options.on_stored),
      drain_(options.drain),
      store_(store),
      metrics_(metrics),
      clock_(clock),
      queue_(options.queue, metrics, clock) {
  for (const Model* model : models) {
    PipelineOptions own = options.pipeline;
    const auto scores = options.head_scores.find(model->name());
    if (scores != options.head_scores.end()) own.head_scores = scores->second;
    pipelines_[model->name()] = std::make_unique<Pipeline>(*model, std::move(own));
  }
}

grpc::Status CompressorService::Compress(grpc::ServerContext* context,
                                         const v1::CompressRequest* request,
                                         grpc::ServerWriter<v1::CompressResponse>* writer) {
  const absl::Time begin = clock_.Now();
  const absl::Status status = DoCompress(*context, *request, *writer);
  metrics_.CountRpc("Compress", status, clock_.Now() - begin);
  return ToGrpcStatus(status);
}

absl::Status CompressorService::DoCompress(grpc::ServerContext& context,
                                           const v1::CompressRequest& request,
                                           grpc::ServerWriter<v1::CompressResponse>& writer) {
  KVTIER_RETURN_IF_ERROR(CheckNotDraining(drain_));
  const auto it = pipelines_.find(request.model());
  if (it == pipelines_.end()) {
    std::vector<std::string> names;
    for (const auto& [name, pipeline] : pipelines_) names.push_back(name);
    std::sort(names.begin(), names.end());
    return absl::NotFoundError(absl::StrCat("unknown model '", request.model(),
                                            "'; this server has ", absl::StrJoin(names, ", ")));
  }
  const Pipeline& pipeline = *it->second;
  const CompressInput input = MakeInput(request);
  KVTIER_RETURN_IF_ERROR(pipeline.Validate(input));
  KVTIER_ASSIGN_OR_RETURN(const Ratio min_ratio,
                          Ratio::FromDouble(request.min_ratio() == 0 ? 1.0 : request.min_ratio()));
  KVTIER_RETURN_IF_ERROR(TtlFromProto(request.ttl_ms()).status());
  KVTIER_ASSIGN_OR_RETURN(const KeyDescriptorHead head, pipeline.DescribeKey(input));
  KVTIER_ASSIGN_OR_RETURN(const Key key, ComputeKey(head, input.context));
  if (!request.expected_key().empty() && request.expected_key() != key.AsStringView()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected_key differs from the key of this request, ", key.ToHex(),
        ": model, prompt profile, recipe, system prompt or tokens are not what the caller thinks"));
  }

  absl::StatusOr<v1::CompressResult> result = FindStored(
      key, min_ratio, request.durability(),
      std::min(clock_.Now() + kStoreLookupTimeout, absl::FromChrono(context.deadline())));
  if (result.ok()) {
    metrics_.compress_already_stored.Increment();
  } else if (!absl::IsNotFound(result.status())) {
    return result.status();
  } else {
    // The request is copied: the computation may outlive the caller that started it.
    auto shared_request = std::make_shared<const v1::CompressRequest>(request);
    const auto run = [&] {
      return queue_.Run(
          key, pipeline.EstimateBytes(input),
          [this, &pipeline, shared_request](const CompressQueue::Progress& on_progress,
                                            const CancelToken& cancel) {
            return ComputeAndStore(pipeline, *shared_request, on_progress, cancel);
          },
          [&writer](const v1::CompressProgress& progress) {
            v1::CompressResponse response;
            *response.mutable_progress() = progress;
            writer.Write(response);  // A broken stream shows in IsCancelled.
          },
          [&context] { return !context.IsCancelled(); });
    };
    result = run();
    // A shared computation promises what its first caller asked for; asking again upgrades it.
    if (result.ok() && !IsDurable(result->object(), request.durability())) result = run();
  }
  KVTIER_RETURN_IF_ERROR(result.status());
  v1::CompressResponse response;
  *response.mutable_result() = *std::move(result);
  writer.Write(response);
  return absl::OkStatus();
}

absl::StatusOr<v1::CompressResult> CompressorService::FindStored(const Key& key, Ratio min_ratio,
                                                                 v1::Durability durability,
                                                                 absl::Time deadline) {
  absl::StatusOr<v1::GetObjectResponse> stored = store_.GetObject(key, deadline);
  if (!stored.ok()) return FromStore(stored.status());
  const v1::ObjectSummary& object = stored->object();
  const uint32_t resident = object.resident_bands();
  const bool good_enough =
      resident > 0 && resident <= static_cast<uint32_t>(object.bands_size()) &&
      object.bands(static_cast<int>(resident) - 1).edge_millionths() >= min_ratio.millionths() &&
      IsDurable(object, durability);
  if (!good_enough) return absl::NotFoundError("");
  v1::CompressResult result;
  *result.mutable_object() = object;
  result.set_manifest(std::move(*stored->mutable_manifest()));
  result.set_computed(false);
  return result;
}

absl::StatusOr<v1::CompressResult> CompressorService::ComputeAndStore(
    const Pipeline& pipeline, const v1::CompressRequest& request,
    const CompressQueue::Progress& on_progress, const CancelToken& cancel) {
  const CompressInput input = MakeInput(request);
  KVTIER_ASSIGN_OR_RETURN(const KeyDescriptorHead head, pipeline.DescribeKey(input));
  KVTIER_ASSIGN_OR_RETURN(const Key key, ComputeKey(head, input.context));
  // Looked at again: an earlier computation of this key may have ended between the caller's look
  // and its place in the queue. Only a whole object will do, since waiters may ask for any ratio.
  absl::StatusOr<v1::CompressResult> found =
      FindStored(key, Ratio(), request.durability(), clock_.Now() + kStoreLookupTimeout);
  if (!absl::IsNotFound(found.status())) return found;

  StageTimer timer(clock_);
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                          pipeline.Compress(
                              input,
                              [&](const CompressProgress& progress) {
                                v1::CompressProgress message;
                                message.set_stage(ToProto(progress.stage));
                                message.set_done(progress.tokens_done);
                                message.set_total(progress.tokens_total);
                                timer.Enter(message.stage());
                                on_progress(message);
                              },
                              cancel));
  metrics_.compress_context_tokens.Increment(static_cast<double>(input.context.size()));

  const auto report_upload = [&](uint64_t bytes_done) {
    v1::CompressProgress message;
    message.set_stage(v1::COMPRESS_STAGE_UPLOAD);
    message.set_done(bytes_done);
    message.set_total(object.manifest->total_bytes());
    timer.Enter(message.stage());
    on_progress(message);
  };
  report_upload(0);
  KVTIER_ASSIGN_OR_RETURN(const absl::Duration ttl, TtlFromProto(request.ttl_ms()));
  KVTIER_ASSIGN_OR_RETURN(v1::ObjectSummary stored,
                          store_.Put(object, request.durability(), report_upload, cancel,
                                     clock_.Now() + kUploadTimeout, std::nullopt, ttl));

  v1::CompressResult result;
  if (stored.name().upload_id() == object.manifest->upload_id.AsStringView()) {
    result.set_manifest(EncodeManifest(*object.manifest));
    if (on_stored_ != nullptr) on_stored_(object);
  } else {  // Somebody stored an upload of this key meanwhile, and that one stays.
    KVTIER_ASSIGN_OR_RETURN(
        v1::GetObjectResponse kept,
        store_.GetObject(object.manifest->key, clock_.Now() + kStoreLookupTimeout));
    stored = std::move(*kept.mutable_object());
    result.set_manifest(std::move(*kept.mutable_manifest()));
  }
  *result.mutable_object() = std::move(stored);
  metrics_.compress_computed.Increment();
  result.set_computed(true);
  *result.mutable_timings() = timer.Finish();
  metrics_.compress_prefill_seconds.Observe(result.timings().prefill_seconds());
  metrics_.compress_scoring_seconds.Observe(result.timings().scoring_seconds());
  return result;
}

grpc::Status CompressorService::ListModels(grpc::ServerContext* /*context*/,
                                           const v1::ListModelsRequest* /*request*/,
                                           v1::ListModelsResponse* response) {
  const absl::Time begin = clock_.Now();
  if (const absl::Status status = CheckNotDraining(drain_); !status.ok()) {
    metrics_.CountRpc("ListModels", status, clock_.Now() - begin);
    return ToGrpcStatus(status);
  }
  for (const auto& [name, pipeline] : pipelines_) {
    const Model& model = pipeline->model();
    const ModelConfig& config = model.config();
    v1::ModelSummary& summary = *response->add_models();
    summary.set_name(name);
    summary.set_digest(std::string(model.digest().AsStringView()));
    summary.set_prompt_profile_digest(std::string(model.profile().ComputeDigest().AsStringView()));
    summary.set_layers(static_cast<uint32_t>(config.layers));
    summary.set_kv_heads(static_cast<uint32_t>(config.kv_heads));
    summary.set_head_dim(static_cast<uint32_t>(config.head_dim));
    summary.set_vocabulary(static_cast<uint64_t>(config.vocabulary));
    summary.set_positions_max(static_cast<uint64_t>(config.positions_max));
    summary.set_context_tokens_max(LongestContext(*pipeline));
    summary.set_weight_bytes(model.weight_bytes());
    if (const auto& bytes = model.profile().byte_vocabulary) {
      summary.mutable_byte_vocabulary()->set_first_id(bytes->first_id);
    }
    summary.set_kv_dtype(std::string(DTypeName(pipeline->options().kv_dtype)));
  }
  metrics_.CountRpc("ListModels", absl::OkStatus(), clock_.Now() - begin);
  return grpc::Status::OK;
}

}  // namespace kvtier
