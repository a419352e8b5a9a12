#include "services/store_service.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/blocking_pool.h"
#include "services/fetch_plan.h"
#include "services/frames.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

using RawStoreService = v1::StoreService::WithRawCallbackMethod_Put<
    v1::StoreService::WithRawCallbackMethod_Fetch<v1::StoreService::WithCallbackMethod_QueryUpload<
        v1::StoreService::WithCallbackMethod_GetObject<v1::StoreService::WithCallbackMethod_List<
            v1::StoreService::WithCallbackMethod_Delete<v1::StoreService::WithCallbackMethod_Verify<
                v1::StoreService::WithCallbackMethod_Stats<v1::StoreService::Service>>>>>>>>;

// What a refused caller is told to wait: until a call ends; until eviction or somebody made room.
constexpr absl::Duration kBusyRetryDelay = absl::Milliseconds(200);
constexpr absl::Duration kFullRetryDelay = absl::Seconds(2);

// What all calls share: admission, the pool, counting. Thread-safe.
class CallEnvironment {
 public:
  CallEnvironment(const StoreServiceOptions& options, TieredStore& store, Metrics& metrics,
                  Clock& clock)
      : options_(options),
        store_(store),
        metrics_(metrics),
        clock_(clock),
        pool_(options.pool_threads, options.calls_max) {}

  // RESOURCE_EXHAUSTED when too many calls run. Every admitted call ends with one Release.
  absl::Status Admit() {
    if (running_.fetch_add(1) < options_.calls_max) return absl::OkStatus();
    running_.fetch_sub(1);
    return WithRetryAfter(absl::ResourceExhaustedError(
                              absl::StrCat(options_.calls_max, " calls are running already")),
                          kBusyRetryDelay);
  }
  void Release() { running_.fetch_sub(1); }

  // An admitted call has at most one job at a time, so that the pool's queue is never full.
  void Schedule(std::function<void()> job) { pool_.Schedule(std::move(job)); }

  void Count(absl::string_view method, const absl::Status& status, absl::Time start) {
    metrics_.CountRpc(method, status, clock_.Now() - start);
  }

  const StoreServiceOptions& options() const { return options_; }
  TieredStore& store() { return store_; }
  Metrics& metrics() { return metrics_; }
  Clock& clock() { return clock_; }

 private:
  const StoreServiceOptions options_;
  TieredStore& store_;
  Metrics& metrics_;
  Clock& clock_;
  std::atomic<uint32_t> running_{0};
  BlockingPool pool_;  // Last: its threads end before the rest goes.
};

// One Fetch. gRPC calls OnWriteDone and OnDone; at any time either a write or a pool job is under
// way, never both, so the members need no lock. Letting go of a pin may remove bytes from the disk,
// so a fetch that has one ends on the pool. Deletes itself when the call is over.
class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
            const grpc::ByteBuffer& request)
      : environment_(environment), start_(environment.clock().Now()) {
    absl::Status status = environment_.Admit();
    admitted_ = status.ok();
    if (status.ok()) status = Parse(context, request);
    if (!status.ok()) {
      End(status);
      return;
    }
    environment_.Schedule([this] { Open(); });
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      environment_.Schedule([this] { End(absl::CancelledError("the reader is gone")); });
    } else if (offset_ < range_.end) {
      SendFrame();
    } else {
      environment_.Schedule([this] { ReadSegment(); });
    }
  }

  void OnDone() override {
    if (admitted_) environment_.Release();
    delete this;
  }

 private:
  absl::Status Parse(const grpc::ServerContextBase& context, const grpc::ByteBuffer& bytes) {
    v1::FetchRequest message;
    KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(bytes, message));
    KVTIER_ASSIGN_OR_RETURN(const TenantId tenant, TenantOf(context));
    KVTIER_ASSIGN_OR_RETURN(request_, FetchRequestFromProto(tenant, message));
    return absl::OkStatus();
  }

  // On the pool: finds the object and sends the header.
  void Open() {
    const absl::Status status = [&]() -> absl::Status {
      KVTIER_ASSIGN_OR_RETURN(
          pinned_, environment_.store().Pin(request_.tenant, request_.key, request_.upload_id));
      KVTIER_ASSIGN_OR_RETURN(plan_,
                              PlanFetch(pinned_->manifest(), pinned_->resident_bands(), request_));
      return absl::OkStatus();
    }();
    if (!status.ok()) {
      End(status);
      return;
    }
    layer_ = plan_.layers.begin;
    v1::FetchResponse response;
    v1::FetchHeader& header = *response.mutable_header();
    header.set_manifest(EncodeManifest(*plan_.manifest));
    header.set_band_count(plan_.band_count);
    header.set_ratio_millionths(plan_.manifest->bands[plan_.band_count - 1].edge.millionths());
    header.set_payload_bytes(plan_.payload_bytes());
    message_ = SerializeToByteBuffer(response);
    StartWrite(&message_);
  }

  // On the pool: makes the next segment with bytes readable.
  void ReadSegment() {
    for (; layer_ < plan_.layers.end; AdvanceSegment()) {
      range_ = plan_.bytes_of(BandIndex(band_), LayerIndex(layer_));
      if (range_.begin == range_.end) continue;
      absl::StatusOr<SegmentRef> segment = pinned_->Read(BandIndex(band_), LayerIndex(layer_));
      if (!segment.ok()) {
        End(segment.status());
        return;
      }
      segment_ = *std::move(segment);
      frame_band_ = BandIndex(band_);
      frame_layer_ = LayerIndex(layer_);
      offset_ = range_.begin;
      AdvanceSegment();
      SendFrame();
      return;
    }
    End(absl::OkStatus());
  }

  void AdvanceSegment() {
    if (++band_ < plan_.band_count) return;
    band_ = 0;
    ++layer_;
  }

  void SendFrame() {
    const uint64_t end = std::min(range_.end, offset_ + limits::kFrameBytesMax);
    message_ =
        MakeFrame(frame_band_, frame_layer_, offset_ - range_.begin, segment_, {offset_, end});
    environment_.metrics().store_fetch_bytes.Increment(static_cast<double>(end - offset_));
    offset_ = end;
    StartWrite(&message_);
  }

  // Counts before the caller hears of the end, so that who asks next sees it counted.
  void End(const absl::Status& status) {
    pinned_.reset();
    environment_.Count("Fetch", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const absl::Time start_;
  bool admitted_ = false;
  FetchRequest request_;
  std::unique_ptr<PinnedObject> pinned_;
  FetchPlan plan_;

  uint32_t layer_ = 0;  // Next segment to read.
  uint32_t band_ = 0;

  SegmentRef segment_;  // The one being sent, and what of it.
  BandIndex frame_band_;
  LayerIndex frame_layer_;
  SegmentEntry::ByteRange range_;
  uint64_t offset_ = 0;  // Inside the segment; next byte to send.

  grpc::ByteBuffer message_;  // The one being written.
};

// One Put. At any time either a read or a pool job is under way, never both. Deletes itself.
class PutCall final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  PutCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
          grpc::ByteBuffer* response)
      : environment_(environment),
        context_(context),
        response_(response),
        start_(environment.clock().Now()) {
    absl::Status status = environment_.Admit();
    admitted_ = status.ok();
    if (status.ok()) {
      absl::StatusOr<TenantId> tenant = TenantOf(context);
      status = tenant.status();
      if (tenant.ok()) tenant_ = *std::move(tenant);
    }
    if (!status.ok()) {
      End(status);
      return;
    }
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {  // The client has sent everything, or is gone.
      HandleLastMessage();
      return;
    }
    if (upload_ == nullptr) {
      environment_.Schedule([this] { Begin(); });  // May move other objects to the disk.
      return;
    }
    Continue(Append());
  }

  void OnDone() override {
    if (admitted_) environment_.Release();
    delete this;
  }

 private:
  void Begin() {
    Continue([&]() -> absl::Status {
      v1::PutRequest request;
      KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(message_, request));
      if (!request.has_header()) {
        return absl::InvalidArgumentError("the first message must carry the header");
      }
      const std::string& bytes = request.header().manifest();
      if (bytes.size() > limits::kManifestBytesMax) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the manifest has ", bytes.size(), " bytes, more than ", limits::kManifestBytesMax));
      }
      absl::StatusOr<Manifest> manifest = DecodeManifest(AsBytes(bytes));
      if (absl::IsDataLoss(manifest.status())) {
        // What came over the wire was not stored: it is the sender who can mend it.
        return absl::InvalidArgumentError(absl::StrCat("manifest: ", manifest.status().message()));
      }
      KVTIER_RETURN_IF_ERROR(manifest.status());
      KVTIER_ASSIGN_OR_RETURN(const Durability durability,
                              DurabilityFromProto(request.header().durability(),
                                                  environment_.store().disk_usage().has_value()));
      std::optional<UploadId> replaces;
      if (const std::string& id = request.header().replaces_upload_id(); !id.empty()) {
        KVTIER_ASSIGN_OR_RETURN(replaces, UploadIdFromProto(id));
      }
      KVTIER_ASSIGN_OR_RETURN(
          upload_, environment_.store().StartUpload(
                       tenant_, std::make_shared<const Manifest>(*std::move(manifest)), durability,
                       replaces));
      return absl::OkStatus();
    }());
  }

  absl::Status Append() {
    KVTIER_ASSIGN_OR_RETURN(const std::optional<PutChunkView> chunk, ReadPutChunk(message_));
    if (!chunk.has_value()) {
      return absl::InvalidArgumentError("every message but the first must carry a chunk");
    }
    if (chunk->payload.bytes > limits::kFrameBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("chunk of ", chunk->payload.bytes,
                                                     " bytes, more than ", limits::kFrameBytesMax));
    }
    uint64_t offset = chunk->object_offset;
    for (const std::span<const std::byte> piece : chunk->payload.pieces) {
      KVTIER_RETURN_IF_ERROR(upload_->Append(offset, piece));
      offset += piece.size();
    }
    environment_.metrics().store_put_bytes.Increment(static_cast<double>(chunk->payload.bytes));
    return absl::OkStatus();
  }

  void Continue(const absl::Status& status) {
    if (!status.ok()) {
      End(status);
      return;
    }
    StartRead(&message_);
  }

  void HandleLastMessage() {
    if (upload_ == nullptr) {
      End(absl::InvalidArgumentError("the first message must carry the header"));
    } else if (context_.IsCancelled() && !upload_->complete()) {
      End(absl::CancelledError("the writer is gone"));  // It may resume.
    } else {
      // Also when bytes are missing: the upload may have been sealed by an earlier stream.
      environment_.Schedule([this] { Seal(); });
    }
  }

  void Seal() {
    const absl::StatusOr<ObjectStat> stat = environment_.store().FinishUpload(upload_);
    if (stat.ok()) {
      v1::PutResponse response;
      *response.mutable_object() = SummaryToProto(*stat);
      *response_ = SerializeToByteBuffer(response);
    }
    End(stat.status());
  }

  void End(absl::Status status) {
    if (absl::IsResourceExhausted(status) && !RetryAfter(status).has_value()) {
      status = WithRetryAfter(std::move(status), kFullRetryDelay);
    }
    upload_.reset();
    environment_.Count("Put", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const grpc::ServerContextBase& context_;
  grpc::ByteBuffer* const response_;
  const absl::Time start_;
  bool admitted_ = false;
  TenantId tenant_;
  std::shared_ptr<Upload> upload_;
  grpc::ByteBuffer message_;  // The one being read.
};

// The current upload of a name. ABORTED when another one than the name's is current.
absl::StatusOr<ObjectStat> StatNamed(TieredStore& store, const TenantId& tenant,
                                     const ObjectNameParts& name) {
  KVTIER_ASSIGN_OR_RETURN(ObjectStat stat, store.Stat(tenant, name.key));
  if (name.upload_id.has_value() && stat.manifest->upload_id != *name.upload_id) {
    return absl::AbortedError(absl::StrCat("upload ", stat.manifest->upload_id.ToHex(),
                                           " is current, not ", name.upload_id->ToHex()));
  }
  return stat;
}

absl::Status QueryUpload(CallEnvironment& environment, const TenantId& tenant,
                         const v1::QueryUploadRequest& request, v1::QueryUploadResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const UploadId upload, UploadIdFromProto(request.upload_id()));
  KVTIER_ASSIGN_OR_RETURN(const uint64_t bytes, environment.store().UploadedBytes(tenant, upload));
  response.set_uploaded_bytes(bytes);
  response.set_incarnation(environment.store().incarnation());
  return absl::OkStatus();
}

absl::Status GetObject(CallEnvironment& environment, const TenantId& tenant,
                       const v1::GetObjectRequest& request, v1::GetObjectResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  KVTIER_ASSIGN_OR_RETURN(const ObjectStat stat, StatNamed(environment.store(), tenant, name));
  *response.mutable_object() = SummaryToProto(stat);
  response.set_manifest(EncodeManifest(*stat.manifest));
  return absl::OkStatus();
}

absl::Status List(CallEnvironment& environment, const TenantId& tenant,
                  const v1::ListRequest& request, v1::ListResponse& response) {
  std::optional<Key> after;
  if (!request.after_key().empty()) {
    KVTIER_ASSIGN_OR_RETURN(after, KeyFromProto(request.after_key()));
  }
  if (request.page_size() > limits::kListPageMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size ", request.page_size(), " is above ", limits::kListPageMax));
  }
  const size_t page = request.page_size() == 0 ? limits::kListPageMax : request.page_size();
  // One more than asked tells whether there is another page.
  std::vector<ObjectStat> stats = environment.store().List(tenant, after, page + 1);
  if (stats.size() > page) {
    stats.resize(page);
    response.set_next_after_key(std::string(stats.back().manifest->key.AsStringView()));
  }
  for (const ObjectStat& stat : stats) *response.add_objects() = SummaryToProto(stat);
  return absl::OkStatus();
}

absl::Status Delete(CallEnvironment& environment, const TenantId& tenant,
                    const v1::DeleteRequest& request, v1::DeleteResponse& response) {
  TieredStore& store = environment.store();
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  KVTIER_ASSIGN_OR_RETURN(ObjectStat stat, StatNamed(store, tenant, name));
  if (request.keep_ratio() == 0) return store.Delete(tenant, name.key);
  KVTIER_ASSIGN_OR_RETURN(const Ratio keep, Ratio::FromDouble(request.keep_ratio()));
  if (keep == Ratio()) {
    return absl::InvalidArgumentError("keep_ratio 1 would keep everything; it must be below 1");
  }
  uint32_t bands = 1;
  while (bands < stat.manifest->bands.size() && stat.manifest->bands[bands].edge <= keep) ++bands;
  KVTIER_RETURN_IF_ERROR(store.DropBands(tenant, name.key, bands));
  KVTIER_ASSIGN_OR_RETURN(stat, store.Stat(tenant, name.key));
  *response.mutable_object() = SummaryToProto(stat);
  return absl::OkStatus();
}

absl::Status Verify(CallEnvironment& environment, const TenantId& tenant,
                    const v1::VerifyRequest& request, v1::VerifyResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  KVTIER_ASSIGN_OR_RETURN(const ObjectStat stat, StatNamed(environment.store(), tenant, name));
  KVTIER_RETURN_IF_ERROR(environment.store().Verify(tenant, name.key));
  response.set_segments(uint64_t{stat.resident_bands} * stat.manifest->geometry.layer_count());
  response.set_bytes(stat.manifest->PrefixBytes(stat.resident_bands));
  return absl::OkStatus();
}

absl::Status Stats(CallEnvironment& environment, const TenantId&, const v1::StatsRequest&,
                   v1::StatsResponse& response) {
  const TieredStore& store = environment.store();
  const auto set_tier = [](const TierUsage& usage, v1::TierStats* tier) {
    tier->set_bytes(usage.bytes);
    tier->set_budget_bytes(usage.budget_bytes);
  };
  response.set_objects(store.object_count());
  set_tier(store.host_usage(), response.mutable_host());
  if (const std::optional<TierUsage> disk = store.disk_usage()) {
    set_tier(*disk, response.mutable_disk());
  }
  v1::Limits& limits = *response.mutable_limits();
  limits.set_frame_bytes_max(limits::kFrameBytesMax);
  limits.set_manifest_bytes_max(limits::kManifestBytesMax);
  limits.set_object_bytes_max(environment.options().object_bytes_max);
  limits.set_uploads_max(limits::kUploadsMax);
  limits.set_list_page_max(limits::kListPageMax);
  response.set_incarnation(store.incarnation());
  response.set_version(KVTIER_VERSION);
  return absl::OkStatus();
}

class StoreServiceImpl final : public RawStoreService {
 public:
  StoreServiceImpl(const StoreServiceOptions& options, TieredStore& store, Metrics& metrics,
                   Clock& clock)
      : environment_(options, store, metrics, clock) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Fetch(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override {
    return new FetchCall(environment_, *context, *request);
  }
  grpc::ServerReadReactor<grpc::ByteBuffer>* Put(grpc::CallbackServerContext* context,
                                                 grpc::ByteBuffer* response) override {
    return new PutCall(environment_, *context, response);
  }
  grpc::ServerUnaryReactor* QueryUpload(grpc::CallbackServerContext* context,
                                        const v1::QueryUploadRequest* request,
                                        v1::QueryUploadResponse* response) override {
    return RunUnary("QueryUpload", kvtier::QueryUpload, context, request, response);
  }
  grpc::ServerUnaryReactor* GetObject(grpc::CallbackServerContext* context,
                                      const v1::GetObjectRequest* request,
                                      v1::GetObjectResponse* response) override {
    return RunUnary("GetObject", kvtier::GetObject, context, request, response);
  }
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListRequest* request,
                                 v1::ListResponse* response) override {
    return RunUnary("List", kvtier::List, context, request, response);
  }
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteRequest* request,
                                   v1::DeleteResponse* response) override {
    return RunUnary("Delete", kvtier::Delete, context, request, response);
  }
  grpc::ServerUnaryReactor* Verify(grpc::CallbackServerContext* context,
                                   const v1::VerifyRequest* request,
                                   v1::VerifyResponse* response) override {
    return RunUnary("Verify", kvtier::Verify, context, request, response);
  }
  grpc::ServerUnaryReactor* Stats(grpc::CallbackServerContext* context,
                                  const v1::StatsRequest* request,
                                  v1::StatsResponse* response) override {
    return RunUnary("Stats", kvtier::Stats, context, request, response);
  }

 private:
  // Runs `method` on the pool: each of them may find the store busy with the disk. `name` outlives
  // the call.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* RunUnary(const char* name,
                                     absl::Status (*method)(CallEnvironment&, const TenantId&,
                                                            const Request&, Response&),
                                     grpc::CallbackServerContext* context, const Request* request,
                                     Response* response) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const absl::Time start = environment_.clock().Now();
    if (absl::Status status = environment_.Admit(); !status.ok()) {
      environment_.Count(name, status, start);
      reactor->Finish(ToGrpcStatus(status));
      return reactor;
    }
    environment_.Schedule([=, this] {
      const absl::StatusOr<TenantId> tenant = TenantOf(*context);
      const absl::Status status =
          tenant.ok() ? method(environment_, *tenant, *request, *response) : tenant.status();
      environment_.Count(name, status, start);
      environment_.Release();
      reactor->Finish(ToGrpcStatus(status));
    });
    return reactor;
  }

  CallEnvironment environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeStoreService(const StoreServiceOptions& options,
                                                TieredStore& store, Metrics& metrics,
                                                Clock& clock) {
  return std::make_unique<StoreServiceImpl>(options, store, metrics, clock);
}

}  // namespace kvtier
