#include "services/page_service.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvtier/v1/pages.grpc.pb.h"
#include "services/blocking_pool.h"
#include "services/call_slots.h"
#include "services/frames.h"
#include "services/page_messages.h"
#include "services/unary_call.h"

namespace kvtier {
namespace {

using RawPageService = v1::PageService::WithCallbackMethod_BatchPut<
    v1::PageService::WithRawCallbackMethod_BatchGet<v1::PageService::WithCallbackMethod_BatchExists<
        v1::PageService::WithCallbackMethod_BatchDelete<
            v1::PageService::WithCallbackMethod_PageStats<v1::PageService::Service>>>>>;

// What a refused caller is told to wait: until a call ends.
constexpr absl::Duration kBusyRetryDelay = absl::Milliseconds(20);

std::vector<absl::StatusCode> CodesOf(const std::vector<absl::Status>& statuses) {
  std::vector<absl::StatusCode> codes;
  codes.reserve(statuses.size());
  for (const absl::Status& status : statuses) codes.push_back(status.code());
  return codes;
}

class PageServiceImpl final : public RawPageService {
 public:
  PageServiceImpl(const PageServiceOptions& options, PageStore& store, Metrics& metrics,
                  Clock& clock)
      : store_(store),
        metrics_(metrics),
        clock_(clock),
        slots_(options.calls_max, kBusyRetryDelay, metrics, {}, options.drain),
        pool_(options.pool_threads, options.calls_max) {}

  // The request is ours until the call ends: its pages move into the store.
  grpc::ServerUnaryReactor* BatchPut(grpc::CallbackServerContext* context,
                                     const v1::BatchPutRequest* request,
                                     v1::BatchPutResponse* response) override {
    const bool waits = request->durability() == v1::DURABILITY_DISK;
    return Run("BatchPut", waits, context, [=, this](const TenantId& tenant) {
      return Put(tenant, const_cast<v1::BatchPutRequest&>(*request), *response);
    });
  }

  grpc::ServerUnaryReactor* BatchGet(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

  grpc::ServerUnaryReactor* BatchExists(grpc::CallbackServerContext* context,
                                        const v1::BatchExistsRequest* request,
                                        v1::BatchExistsResponse* response) override {
    return Run("BatchExists", /*waits=*/false, context,
               [=, this](const TenantId& tenant) -> absl::Status {
                 KVTIER_ASSIGN_OR_RETURN(const std::vector<PageKey> keys,
                                         PageKeysFromProto(request->keys()));
                 for (const PagePlace place : store_.Locate(tenant, keys)) {
                   response->mutable_exists()->push_back(static_cast<char>(place));
                 }
                 return absl::OkStatus();
               });
  }

  grpc::ServerUnaryReactor* BatchDelete(grpc::CallbackServerContext* context,
                                        const v1::BatchDeleteRequest* request,
                                        v1::BatchDeleteResponse* response) override {
    return Run("BatchDelete", /*waits=*/store_.has_disk(), context,
               [=, this](const TenantId& tenant) -> absl::Status {
                 KVTIER_ASSIGN_OR_RETURN(const std::vector<PageKey> keys,
                                         PageKeysFromProto(request->keys()));
                 for (const absl::StatusCode code : CodesOf(store_.Delete(tenant, keys))) {
                   response->add_codes(static_cast<uint32_t>(code));
                 }
                 return absl::OkStatus();
               });
  }

  grpc::ServerUnaryReactor* PageStats(grpc::CallbackServerContext* context,
                                      const v1::PageStatsRequest*,
                                      v1::PageStatsResponse* response) override {
    return Run("PageStats", /*waits=*/false, context, [=, this](const TenantId& tenant) {
      const PageHostUsage host = store_.host_usage();
      response->set_host_pages(host.pages);
      response->set_host_bytes(host.bytes);
      response->set_host_budget_bytes(host.budget_bytes);
      const PageTierUsage disk = store_.disk_usage().value_or(PageTierUsage());
      response->set_disk_pages(disk.pages);
      response->set_disk_bytes(disk.bytes);
      response->set_disk_budget_bytes(disk.budget_bytes);
      const TenantPages usage = store_.usage_of(tenant);
      v1::TenantPageStats& own = *response->mutable_tenant();
      own.set_host_pages(usage.host_pages);
      own.set_host_bytes(usage.host_bytes);
      own.set_disk_bytes(usage.disk_bytes);
      own.set_quota_bytes(usage.quota_bytes);
      v1::PageLimits& limits = *response->mutable_limits();
      limits.set_page_bytes_max(limits::kPageBytesMax);
      limits.set_disk_page_bytes_max(disk.page_bytes_max);
      limits.set_batch_pages_max(limits::kPageBatchMax);
      limits.set_batch_bytes_max(limits::kPageBatchBytesMax);
      return absl::OkStatus();
    });
  }

 private:
  // Runs `method`, on the pool if it may wait for the disk. `name` outlives the call.
  grpc::ServerUnaryReactor* Run(const char* name, bool waits, grpc::CallbackServerContext* context,
                                std::function<absl::Status(const TenantId&)> method) {
    auto* const call = new UnaryCall(name, metrics_, clock_);
    if (!call->Admit(slots_, *context)) return call;
    auto run = [call, method = std::move(method)] { call->End(method(call->tenant())); };
    if (waits) {
      pool_.Schedule(std::move(run));
    } else {
      run();
    }
    return call;
  }

  absl::Status Put(const TenantId& tenant, v1::BatchPutRequest& request,
                   v1::BatchPutResponse& response) {
    KVTIER_RETURN_IF_ERROR(CheckBatchPut(request));
    const bool to_disk = request.durability() == v1::DURABILITY_DISK;
    if (to_disk && !store_.has_disk()) {
      return absl::FailedPreconditionError(
          "durability DISK: this store has no disk for pages (--page_disk_mib)");
    }
    std::vector<PagePut> puts;
    puts.reserve(static_cast<size_t>(request.pages_size()));
    for (v1::PagePut& page : *request.mutable_pages()) {
      PagePut& put = puts.emplace_back();
      KVTIER_ASSIGN_OR_RETURN(put.key, PageKey::FromBytes(page.key()));
      put.bytes = std::move(*page.mutable_payload());
      if (page.has_crc32c()) put.crc32c = Crc32c(page.crc32c());
    }
    for (const absl::StatusCode code : CodesOf(store_.Put(
             tenant, std::move(puts), to_disk ? Durability::kDisk : Durability::kHost))) {
      response.add_codes(static_cast<uint32_t>(code));
    }
    return absl::OkStatus();
  }

  PageStore& store_;
  Metrics& metrics_;
  Clock& clock_;
  CallSlots slots_;
  BlockingPool pool_;  // Last: its threads end before the rest goes.
};

// What is sent of the pages that were found: as many as one response may have.
grpc::ByteBuffer MakeResponse(std::vector<absl::Status> statuses, std::vector<PageRef> pages) {
  std::vector<absl::StatusCode> codes = CodesOf(statuses);
  uint64_t bytes = 0;
  for (size_t i = 0; i < pages.size(); ++i) {
    if (pages[i] == nullptr) {
      if (codes[i] == absl::StatusCode::kOk) codes[i] = absl::StatusCode::kNotFound;
      continue;
    }
    const uint64_t size = pages[i]->bytes().size();
    if (size > limits::kPageBatchBytesMax - bytes) {
      codes[i] = absl::StatusCode::kResourceExhausted;
      pages[i] = nullptr;
      continue;
    }
    bytes += size;
  }
  return MakeBatchGetResponse(codes, pages);
}

grpc::ServerUnaryReactor* PageServiceImpl::BatchGet(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  auto* const call = new UnaryCall("BatchGet", metrics_, clock_);
  if (!call->Admit(slots_, *context)) return call;
  std::vector<PageKey> keys;
  const absl::Status parsed = [&]() -> absl::Status {
    v1::BatchGetRequest message;
    KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(*request, message));
    KVTIER_ASSIGN_OR_RETURN(keys, PageKeysFromProto(message.keys()));
    return absl::OkStatus();
  }();
  if (!parsed.ok()) {
    call->End(parsed);
    return call;
  }
  std::vector<PageRef> pages;
  if (!store_.GetFromHost(call->tenant(), keys, &pages)) {
    std::vector<absl::Status> statuses(keys.size());
    *response = MakeResponse(std::move(statuses), std::move(pages));
    call->End(absl::OkStatus());
    return call;
  }
  pool_.Schedule([=, this, keys = std::move(keys), pages = std::move(pages)]() mutable {
    std::vector<absl::Status> statuses =
        store_.GetFromDisk(call->tenant(), keys, limits::kPageBatchBytesMax, &pages);
    *response = MakeResponse(std::move(statuses), std::move(pages));
    call->End(absl::OkStatus());
  });
  return call;
}

}  // namespace

std::unique_ptr<grpc::Service> MakePageService(const PageServiceOptions& options, PageStore& store,
                                               Metrics& metrics, Clock& clock) {
  return std::make_unique<PageServiceImpl>(options, store, metrics, clock);
}

}  // namespace kvtier
