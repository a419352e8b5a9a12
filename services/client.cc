#include "services/client.h"

#include <algorithm>
#include <span>
#include <utility>

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "base/limits.h"
#include "base/status_macros.h"
#include "kvtier/v1/compressor.grpc.pb.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "kvtier/v1/worker.grpc.pb.h"
#include "services/frames.h"
#include "services/grpc_runtime.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

// One call: its deadline, and the tenant on whose behalf.
class CallContext {
 public:
  explicit CallContext(absl::Time deadline, const TenantId& tenant = TenantId()) {
    if (deadline != absl::InfiniteFuture()) context_.set_deadline(absl::ToChronoTime(deadline));
    AddTenant(tenant, context_);
  }
  grpc::ClientContext* get() { return &context_; }

 private:
  grpc::ClientContext context_;
};

// Runs a unary call of a generated stub.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> CallUnary(
    Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
    const Request& request, absl::Time deadline, const TenantId& tenant = TenantId()) {
  CallContext context(deadline, tenant);
  Response response;
  const grpc::Status status = (stub.*method)(context.get(), request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

void SetName(const Key& key, v1::ObjectName* name) {
  name->set_key(std::string(key.AsStringView()));
}

// Attempts of one Put after a cut connection, and the first wait between two of them;
// together they bridge the restart of a store.
constexpr int kPutAttempts = 6;
constexpr absl::Duration kPutBackoff = absl::Milliseconds(50);

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  KeepGrpcRunning();
  grpc::ChannelArguments arguments;
  // A manifest is the largest message that a server of ours sends.
  arguments.SetMaxReceiveMessageSize(
      static_cast<int>(limits::kManifestBytesMax + limits::kControlMessageBytesMax));
  arguments.SetMaxSendMessageSize(-1);
  // A peer that vanished without a word is noticed while a call waits for it.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  // A restarted server is found again soon. (The "minimum" is how long one attempt to connect may
  // take: a server on a busy machine needs more than a moment for its first answer.)
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // A connection of its own for each channel: two of them do not share one TCP window.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

struct StoreClient::Impl {
  Impl(std::shared_ptr<grpc::Channel> its_channel, TenantId its_tenant)
      : channel(std::move(its_channel)),
        tenant(std::move(its_tenant)),
        stub(v1::StoreService::NewStub(channel)) {}

  absl::StatusOr<uint64_t> UploadedBytes(const UploadId& upload, absl::Time deadline);
  // One stream, from `offset` on.
  absl::StatusOr<v1::ObjectSummary> PutOnce(const CompressedObject& object, v1::PutHeader header,
                                            uint64_t offset,
                                            const std::function<void(uint64_t)>& on_bytes,
                                            const CancelToken& cancel, absl::Time deadline);

  const std::shared_ptr<grpc::Channel> channel;
  const TenantId tenant;
  const std::unique_ptr<v1::StoreService::Stub> stub;
};

StoreClient::StoreClient(std::shared_ptr<grpc::Channel> channel, TenantId tenant)
    : impl_(std::make_unique<Impl>(std::move(channel), std::move(tenant))) {}
StoreClient::~StoreClient() = default;

absl::StatusOr<uint64_t> StoreClient::Impl::UploadedBytes(const UploadId& upload,
                                                          absl::Time deadline) {
  v1::QueryUploadRequest request;
  request.set_upload_id(std::string(upload.AsStringView()));
  const absl::StatusOr<v1::QueryUploadResponse> response =
      CallUnary(*stub, &v1::StoreService::Stub::QueryUpload, request, deadline, tenant);
  if (absl::IsNotFound(response.status())) return 0;  // Nothing there yet, or a restart.
  KVTIER_RETURN_IF_ERROR(response.status());
  return response->uploaded_bytes();
}

absl::StatusOr<v1::ObjectSummary> StoreClient::Impl::PutOnce(
    const CompressedObject& object, v1::PutHeader header, uint64_t offset,
    const std::function<void(uint64_t)>& on_bytes, const CancelToken& cancel, absl::Time deadline) {
  CallContext context(deadline, tenant);
  v1::PutResponse response;
  const auto stream = StartRawPut(*channel, context.get(), &response);

  v1::PutRequest first;
  *first.mutable_header() = std::move(header);
  bool open = stream->Write(SerializeToByteBuffer(first));

  absl::Status cancelled;
  uint64_t segment_begin = 0;
  for (const SegmentRef& segment : object.segments) {
    const uint64_t segment_end = segment_begin + segment.bytes().size();
    while (open && cancelled.ok() && offset < segment_end) {
      const uint64_t bytes = std::min(segment_end - offset, limits::kFrameBytesMax);
      open = stream->Write(
          MakePutChunk(offset, segment, {offset - segment_begin, offset - segment_begin + bytes}));
      if (!open) break;
      offset += bytes;
      if (on_bytes) on_bytes(offset);
      cancelled = cancel.Check();
    }
    segment_begin = segment_end;
  }
  if (!cancelled.ok()) context.get()->TryCancel();
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  if (!cancelled.ok()) return cancelled;
  if (!status.ok()) return FromGrpcStatus(status);
  return response.object();
}

absl::StatusOr<v1::ObjectSummary> StoreClient::Put(const CompressedObject& object,
                                                   v1::Durability durability,
                                                   const std::function<void(uint64_t)>& on_bytes,
                                                   const CancelToken& cancel, absl::Time deadline,
                                                   const std::optional<UploadId>& replaces,
                                                   absl::Duration ttl) {
  KVTIER_ASSIGN_OR_RETURN(const uint64_t ttl_ms, TtlToProto(ttl));
  v1::PutHeader header;
  header.set_ttl_ms(ttl_ms);
  header.set_manifest(EncodeManifest(*object.manifest));
  header.set_durability(durability);
  if (replaces.has_value()) header.set_replaces_upload_id(std::string(replaces->AsStringView()));
  absl::Duration backoff = kPutBackoff;
  absl::Status last;
  for (int attempt = 0; attempt < kPutAttempts; ++attempt) {
    if (attempt > 0) {
      const absl::Time next = absl::Now() + backoff;
      if (next >= deadline) return last;
      do {
        KVTIER_RETURN_IF_ERROR(cancel.Check());
        absl::SleepFor(kPutBackoff);
      } while (absl::Now() < next);
      backoff = std::min(4 * backoff, limits::kRetryBackoffMax);
    }
    const absl::StatusOr<uint64_t> offset =
        impl_->UploadedBytes(object.manifest->upload_id, deadline);
    last = offset.status();
    if (last.ok()) {
      absl::StatusOr<v1::ObjectSummary> summary =
          impl_->PutOnce(object, header, *offset, on_bytes, cancel, deadline);
      if (summary.ok()) return summary;
      last = summary.status();
    }
    if (!absl::IsUnavailable(last)) return last;
  }
  return last;
}

absl::StatusOr<v1::GetObjectResponse> StoreClient::GetObject(const Key& key, absl::Time deadline) {
  v1::GetObjectRequest request;
  SetName(key, request.mutable_name());
  return CallUnary(*impl_->stub, &v1::StoreService::Stub::GetObject, request, deadline,
                   impl_->tenant);
}

absl::StatusOr<v1::ListResponse> StoreClient::List(const std::string& after_key, uint32_t page_size,
                                                   absl::Time deadline) {
  v1::ListRequest request;
  request.set_after_key(after_key);
  request.set_page_size(page_size);
  return CallUnary(*impl_->stub, &v1::StoreService::Stub::List, request, deadline, impl_->tenant);
}

absl::StatusOr<v1::DeleteResponse> StoreClient::Delete(const Key& key, double keep_ratio,
                                                       absl::Time deadline) {
  v1::DeleteRequest request;
  SetName(key, request.mutable_name());
  request.set_keep_ratio(keep_ratio);
  return CallUnary(*impl_->stub, &v1::StoreService::Stub::Delete, request, deadline, impl_->tenant);
}

absl::StatusOr<v1::VerifyResponse> StoreClient::Verify(const Key& key, absl::Time deadline) {
  v1::VerifyRequest request;
  SetName(key, request.mutable_name());
  return CallUnary(*impl_->stub, &v1::StoreService::Stub::Verify, request, deadline, impl_->tenant);
}

absl::StatusOr<v1::StatsResponse> StoreClient::Stats(absl::Time deadline) {
  return CallUnary(*impl_->stub, &v1::StoreService::Stub::Stats, v1::StatsRequest(), deadline,
                   impl_->tenant);
}

absl::StatusOr<v1::ObjectSummary> StoreClient::SetAttributes(const Key& key,
                                                             const AttributeChange& change,
                                                             absl::Time deadline) {
  v1::SetAttributesRequest request;
  SetName(key, request.mutable_name());
  if (change.pinned.has_value()) request.set_pinned(*change.pinned);
  if (change.ttl.has_value()) {
    KVTIER_ASSIGN_OR_RETURN(const uint64_t ttl_ms, TtlToProto(*change.ttl));
    request.set_ttl_ms(ttl_ms);
  }
  KVTIER_ASSIGN_OR_RETURN(v1::SetAttributesResponse response,
                          CallUnary(*impl_->stub, &v1::StoreService::Stub::SetAttributes, request,
                                    deadline, impl_->tenant));
  return std::move(*response.mutable_object());
}

absl::StatusOr<v1::DeleteManyResponse> StoreClient::DeleteMany(
    const v1::DeleteManyRequest& request,
    const std::function<void(const v1::DeleteManyResponse&)>& on_progress, absl::Time deadline) {
  CallContext context(deadline, impl_->tenant);
  const auto stream = impl_->stub->DeleteMany(context.get(), request);
  v1::DeleteManyResponse response;
  while (stream->Read(&response)) {
    if (on_progress) on_progress(response);
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

absl::Status StoreClient::Watch(const v1::WatchRequest& request, absl::Time deadline,
                                const std::function<bool(const v1::WatchResponse&)>& on_message) {
  CallContext context(deadline, impl_->tenant);
  const auto stream = impl_->stub->Watch(context.get(), request);
  v1::WatchResponse response;
  while (stream->Read(&response)) {
    if (on_message(response)) continue;
    context.get()->TryCancel();
    while (stream->Read(&response)) {  // What was on its way.
    }
    stream->Finish();
    return absl::OkStatus();
  }
  return FromGrpcStatus(stream->Finish());
}

struct CompressorClient::Impl {
  explicit Impl(const std::shared_ptr<grpc::Channel>& channel)
      : stub(v1::CompressorService::NewStub(channel)) {}
  const std::unique_ptr<v1::CompressorService::Stub> stub;
};

CompressorClient::CompressorClient(std::shared_ptr<grpc::Channel> channel)
    : impl_(std::make_unique<Impl>(channel)) {}
CompressorClient::~CompressorClient() = default;

absl::StatusOr<v1::CompressResult> CompressorClient::Compress(
    const v1::CompressRequest& request,
    const std::function<void(const v1::CompressProgress&)>& on_progress, absl::Time deadline) {
  CallContext context(deadline);
  const auto stream = impl_->stub->Compress(context.get(), request);
  std::optional<v1::CompressResult> result;
  v1::CompressResponse response;
  while (stream->Read(&response)) {
    if (response.has_result()) {
      result = response.result();
    } else if (response.has_progress() && on_progress) {
      on_progress(response.progress());
    }
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return FromGrpcStatus(status);
  if (!result.has_value()) return absl::InternalError("the compressor's stream has no result");
  return *std::move(result);
}

absl::StatusOr<v1::ListModelsResponse> CompressorClient::ListModels(absl::Time deadline) {
  return CallUnary(*impl_->stub, &v1::CompressorService::Stub::ListModels, v1::ListModelsRequest(),
                   deadline);
}

struct WorkerClient::Impl {
  explicit Impl(const std::shared_ptr<grpc::Channel>& channel)
      : stub(v1::WorkerService::NewStub(channel)) {}
  const std::unique_ptr<v1::WorkerService::Stub> stub;
};

WorkerClient::WorkerClient(std::shared_ptr<grpc::Channel> channel)
    : impl_(std::make_unique<Impl>(channel)) {}
WorkerClient::~WorkerClient() = default;

absl::StatusOr<v1::AttachResponse> WorkerClient::Attach(const v1::AttachRequest& request,
                                                        absl::Time deadline) {
  return CallUnary(*impl_->stub, &v1::WorkerService::Stub::Attach, request, deadline);
}

absl::StatusOr<WorkerClient::Answer> WorkerClient::Ask(
    const v1::AskRequest& request, const std::function<void(std::span<const uint32_t>)>& on_tokens,
    absl::Time deadline) {
  CallContext context(deadline);
  const auto stream = impl_->stub->Ask(context.get(), request);
  Answer answer;
  bool finished = false;
  v1::AskResponse response;
  while (stream->Read(&response)) {
    const std::span<const uint32_t> tokens(response.token_ids().data(),
                                           static_cast<size_t>(response.token_ids_size()));
    answer.token_ids.insert(answer.token_ids.end(), tokens.begin(), tokens.end());
    if (!tokens.empty() && on_tokens) on_tokens(tokens);
    if (response.has_finish()) {
      answer.finish = response.finish();
      finished = true;
    }
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return FromGrpcStatus(status);
  if (!finished) return absl::InternalError("the worker's stream has no finish");
  return answer;
}

absl::Status WorkerClient::Detach(uint64_t attachment, absl::Time deadline) {
  v1::DetachRequest request;
  request.set_attachment(attachment);
  return CallUnary(*impl_->stub, &v1::WorkerService::Stub::Detach, request, deadline).status();
}

absl::StatusOr<v1::GetWorkerResponse> WorkerClient::GetWorker(absl::Time deadline) {
  return CallUnary(*impl_->stub, &v1::WorkerService::Stub::GetWorker, v1::GetWorkerRequest(),
                   deadline);
}

}  // namespace kvtier
