#include "services/worker_service.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/too_large.h"
#include "compressor/decoder.h"
#include "compressor/resident_cache.h"
#include "compressor/sampler.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// Bound on fetching one object when the caller named none.
constexpr absl::Duration kFetchTimeout = absl::Minutes(10);

absl::Time DeadlineOf(grpc::ServerContext& context, Clock& clock) {
  return std::min(absl::FromChrono(context.deadline()), clock.Now() + kFetchTimeout);
}

absl::StatusOr<FetchRequest> MakeFetchRequest(const v1::AttachRequest& request) {
  FetchRequest fetch;
  KVTIER_ASSIGN_OR_RETURN(fetch.key, Key::FromBytes(absl::string_view(request.name().key())));
  if (!request.name().upload_id().empty()) {
    KVTIER_ASSIGN_OR_RETURN(fetch.upload_id,
                            UploadId::FromBytes(absl::string_view(request.name().upload_id())));
  }
  const v1::Extent& extent = request.extent();
  if (extent.ratio() != 0) {
    KVTIER_ASSIGN_OR_RETURN(fetch.ratio, Ratio::FromDouble(extent.ratio()));
  }
  fetch.min_ratio = fetch.ratio;
  if (extent.bytes_max() != 0) {
    fetch.bytes_max = extent.bytes_max();
    KVTIER_ASSIGN_OR_RETURN(fetch.min_ratio, Ratio::FromMillionths(1));
  }
  if (extent.min_ratio() != 0) {
    KVTIER_ASSIGN_OR_RETURN(fetch.min_ratio, Ratio::FromDouble(extent.min_ratio()));
  }
  return fetch;
}

}  // namespace

WorkerService::WorkerService(Options options, const Model& model, Transport& transport,
                             StoreClient& store, Metrics& metrics, Clock& clock)
    : options_(options),
      model_(model),
      transport_(transport),
      store_(store),
      metrics_(metrics),
      clock_(clock),
      attachments_(options.attachments, metrics) {}

absl::Status WorkerService::CheckModel(const Manifest& manifest) const {
  if (manifest.model_digest != model_.digest()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the object was made by model '", manifest.model_name, "' with digest ",
                     manifest.model_digest.ToHex(), ", this worker has '", model_.name(),
                     "' with digest ", model_.digest().ToHex()));
  }
  if (manifest.prompt_profile_digest != model_.profile().ComputeDigest()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the object was made with prompt profile ", manifest.prompt_profile_digest.ToHex(),
        ", this worker has ", model_.profile().ComputeDigest().ToHex()));
  }
  return absl::OkStatus();
}

grpc::Status WorkerService::Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                                   v1::AttachResponse* response) {
  const absl::Time begin = clock_.Now();
  const absl::Status status = DoAttach(*context, *request, *response);
  metrics_.CountRpc("Attach", status, clock_.Now() - begin);
  return ToGrpcStatus(status);
}

absl::Status WorkerService::DoAttach(grpc::ServerContext& context, const v1::AttachRequest& request,
                                     v1::AttachResponse& response) {
  KVTIER_RETURN_IF_ERROR(CheckNotDraining(options_.drain));
  KVTIER_ASSIGN_OR_RETURN(FetchRequest fetch, MakeFetchRequest(request));
  const absl::Time deadline = DeadlineOf(context, clock_);

  // Ask first: what is attached already need not travel, and what does not fit need not start.
  absl::StatusOr<v1::GetObjectResponse> answer = store_.GetObject(fetch.key, deadline);
  if (absl::IsUnavailable(answer.status())) {
    return absl::UnavailableError(
        absl::StrCat("the store cannot be reached: ", answer.status().message()));
  }
  KVTIER_ASSIGN_OR_RETURN(v1::GetObjectResponse stored, std::move(answer));
  KVTIER_ASSIGN_OR_RETURN(const Manifest manifest,
                          DecodeManifest(std::as_bytes(std::span(stored.manifest()))));
  if (fetch.upload_id.has_value() && *fetch.upload_id != manifest.upload_id) {
    return absl::AbortedError(absl::StrCat("upload ", manifest.upload_id.ToHex(),
                                           " is current now, not the asked ",
                                           fetch.upload_id->ToHex()));
  }
  KVTIER_RETURN_IF_ERROR(CheckModel(manifest));
  KVTIER_ASSIGN_OR_RETURN(const uint32_t band_count,
                          ChooseBands(manifest, stored.object().resident_bands(), fetch));

  absl::StatusOr<Attachments::Entry> entry =
      attachments_.FindAndReference(manifest.key, manifest.upload_id, band_count);
  if (!entry.ok()) {
    KVTIER_ASSIGN_OR_RETURN(Attachments::Room room,
                            attachments_.Reserve(manifest.PrefixBytes(band_count)));
    fetch.upload_id = manifest.upload_id;
    const uint64_t prefilled_before = model_.prefilled_tokens();
    const absl::Time begin = clock_.Now();
    KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<const ResidentCache> cache,
                            FetchResidentCache(transport_, fetch, deadline, model_.backend()));
    response.set_fetch_seconds(absl::ToDoubleSeconds(clock_.Now() - begin));
    metrics_.worker_fetched_bytes.Increment(static_cast<double>(cache->bytes()));
    // Nobody would let go of it.
    if (context.IsCancelled()) return absl::CancelledError("the caller went away");
    entry = attachments_.Add(std::move(cache), std::move(room));
    KVTIER_RETURN_IF_ERROR(entry.status());
    const uint64_t prefilled = model_.prefilled_tokens() - prefilled_before;
    metrics_.worker_prefilled_context_tokens.Increment(static_cast<double>(prefilled));
    response.set_prefilled_context_tokens(prefilled);
  }
  response.set_attachment(entry->id);
  *response.mutable_object() = std::move(*stored.mutable_object());
  response.set_ratio_millionths(entry->cache->ratio().millionths());
  response.set_bytes(entry->cache->bytes());
  return absl::OkStatus();
}

grpc::Status WorkerService::Ask(grpc::ServerContext* context, const v1::AskRequest* request,
                                grpc::ServerWriter<v1::AskResponse>* writer) {
  const absl::Time begin = clock_.Now();
  const absl::Status status = DoAsk(*context, *request, *writer);
  if (absl::IsResourceExhausted(status)) metrics_.worker_asks_refused.Increment();
  metrics_.CountRpc("Ask", status, clock_.Now() - begin);
  return ToGrpcStatus(status);
}

absl::Status WorkerService::DoAsk(grpc::ServerContext& context, const v1::AskRequest& request,
                                  grpc::ServerWriter<v1::AskResponse>& writer) {
  KVTIER_RETURN_IF_ERROR(CheckNotDraining(options_.drain));
  const uint32_t answer_max = request.answer_tokens_max();
  if (answer_max == 0 || answer_max > options_.answer_tokens_max) {
    return absl::InvalidArgumentError(absl::StrCat("answer_tokens_max is ", answer_max,
                                                   "; it must be in [1, ",
                                                   options_.answer_tokens_max, "]"));
  }
  if (request.temperature() < 0 || !(request.temperature() <= 100)) {
    return absl::InvalidArgumentError("temperature must be in [0, 100]");
  }
  if (request.stop_ids_size() > static_cast<int>(limits::kStopIdsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.stop_ids_size(), " stop ids; at most ", limits::kStopIdsMax));
  }
  const std::span<const uint32_t> given(request.token_ids().data(),
                                        static_cast<size_t>(request.token_ids_size()));
  const std::vector<uint32_t> question = request.raw()
                                             ? std::vector<uint32_t>(given.begin(), given.end())
                                             : model_.profile().WrapQuery(given);
  if (question.empty()) return absl::InvalidArgumentError("the question has no tokens");
  // The last token of the answer is never fed back.
  const uint64_t tail_tokens = uint64_t{question.size()} + answer_max - 1;
  if (tail_tokens > options_.tail_tokens_max) {
    return TooLargeError(absl::StrCat(
        "question and answer need ", tail_tokens, " tokens, more than this worker's limit of ",
        options_.tail_tokens_max, " (", question.size(), " + ", answer_max, " - 1)"));
  }
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Attachments::Ask> ask,
                          attachments_.BeginAsk(request.attachment()));
  const uint64_t positions = ask->cache()->manifest().logical_length() + tail_tokens;
  const uint64_t positions_max = static_cast<uint64_t>(model_.config().positions_max);
  if (positions > positions_max) {
    return absl::InvalidArgumentError(absl::StrCat("question and answer end at position ",
                                                   positions, ", model ", model_.name(), " has ",
                                                   positions_max));
  }
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Decoder> decoder,
                          Decoder::Create(model_, ask->cache(), static_cast<int64_t>(tail_tokens)));
  metrics_.worker_questions.Increment();
  const absl::Cleanup count_steps = [this, &decoder] {
    const StepCounts counts = decoder->step_counts();
    metrics_.worker_steps_launched.Increment(static_cast<double>(counts.launched));
    metrics_.worker_steps_replayed.Increment(static_cast<double>(counts.replayed));
    metrics_.worker_step_captures_refused.Increment(static_cast<double>(counts.captures_refused));
  };

  const absl::Time begin = clock_.Now();
  Sampler sampler(request.temperature(), request.seed());
  KVTIER_ASSIGN_OR_RETURN(std::span<const float> logits, decoder->Append(question));
  const absl::Time first = clock_.Now();
  uint32_t answered = 0;
  v1::FinishReason reason = v1::FINISH_REASON_LENGTH;
  while (true) {
    if (context.IsCancelled()) return absl::CancelledError("the caller went away");
    const uint32_t token = sampler.Next(logits);
    if (std::find(request.stop_ids().begin(), request.stop_ids().end(), token) !=
        request.stop_ids().end()) {
      reason = v1::FINISH_REASON_STOP_ID;
      break;
    }
    ++answered;
    v1::AskResponse response;
    response.add_token_ids(token);
    writer.Write(response);  // A broken stream shows in IsCancelled.
    if (answered == answer_max) break;
    KVTIER_ASSIGN_OR_RETURN(logits, decoder->Append({&token, 1}));
  }
  metrics_.worker_answer_tokens.Increment(answered);

  v1::AskResponse last;
  v1::AskFinish& finish = *last.mutable_finish();
  finish.set_reason(reason);
  finish.set_question_tokens(static_cast<uint32_t>(question.size()));
  finish.set_answer_tokens(answered);
  finish.set_question_seconds(absl::ToDoubleSeconds(first - begin));
  finish.set_decode_seconds(absl::ToDoubleSeconds(clock_.Now() - first));
  writer.Write(last);
  return absl::OkStatus();
}

grpc::Status WorkerService::Detach(grpc::ServerContext* /*context*/,
                                   const v1::DetachRequest* request,
                                   v1::DetachResponse* /*response*/) {
  const absl::Time begin = clock_.Now();
  absl::Status status = CheckNotDraining(options_.drain);
  if (status.ok()) status = attachments_.Remove(request->attachment());
  metrics_.CountRpc("Detach", status, clock_.Now() - begin);
  return ToGrpcStatus(status);
}

grpc::Status WorkerService::GetWorker(grpc::ServerContext* /*context*/,
                                      const v1::GetWorkerRequest* /*request*/,
                                      v1::GetWorkerResponse* response) {
  const absl::Time begin = clock_.Now();
  if (const absl::Status status = CheckNotDraining(options_.drain); !status.ok()) {
    metrics_.CountRpc("GetWorker", status, clock_.Now() - begin);
    return ToGrpcStatus(status);
  }
  response->set_model(model_.name());
  response->set_model_digest(std::string(model_.digest().AsStringView()));
  response->set_vocabulary(static_cast<uint64_t>(model_.config().vocabulary));
  for (const Attachments::Entry& entry : attachments_.List()) {
    v1::AttachmentSummary& summary = *response->add_attachments();
    summary.set_attachment(entry.id);
    const Manifest& manifest = entry.cache->manifest();
    summary.mutable_name()->set_key(std::string(manifest.key.AsStringView()));
    summary.mutable_name()->set_upload_id(std::string(manifest.upload_id.AsStringView()));
    summary.set_ratio_millionths(entry.cache->ratio().millionths());
    summary.set_bytes(entry.cache->bytes());
    summary.set_running_asks(entry.running_asks);
  }
  response->set_tail_tokens_max(options_.tail_tokens_max);
  response->set_answer_tokens_max(options_.answer_tokens_max);
  response->set_asks_per_attachment_max(attachments_.options().asks_per_object_max);
  response->set_attached_bytes_max(attachments_.options().bytes_max);
  if (const auto& bytes = model_.profile().byte_vocabulary) {
    response->set_byte_vocabulary_first_id(bytes->first_id);
  }
  response->set_prefilled_context_tokens(model_.prefilled_tokens());
  metrics_.CountRpc("GetWorker", absl::OkStatus(), clock_.Now() - begin);
  return grpc::Status::OK;
}

}  // namespace kvtier
