#include "services/page_client.h"

#include <string>
#include <utility>

#include <grpcpp/client_context.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/impl/codegen/rpc_method.h>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/status_macros.h"
#include "kvtier/v1/pages.grpc.pb.h"
#include "services/frames.h"
#include "services/page_messages.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

std::string ToText(const PageKey& key) { return std::string(key.AsStringView()); }

template <typename Codes>
absl::StatusOr<std::vector<absl::Status>> StatusesOf(const Codes& codes, size_t expected) {
  if (static_cast<size_t>(codes.size()) != expected) {
    return absl::InternalError("the store answered for another number of pages");
  }
  std::vector<absl::Status> statuses;
  for (const uint32_t code : codes) {
    statuses.emplace_back(
        code <= 16 ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown, "");
  }
  return statuses;
}

}  // namespace

struct PageClient::Impl {
  void Prepare(grpc::ClientContext& context, absl::Time deadline) const {
    if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
    AddTenant(tenant, context);
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::PageService::Stub::*method)(grpc::ClientContext*,
                                                                              const Request&,
                                                                              Response*),
                                const Request& request, absl::Time deadline) const {
    grpc::ClientContext context;
    Prepare(context, deadline);
    Response response;
    KVTIER_RETURN_IF_ERROR(FromGrpcStatus((stub.get()->*method)(&context, request, &response)));
    return response;
  }

  const std::shared_ptr<grpc::Channel> channel;
  const TenantId tenant;
  const std::unique_ptr<v1::PageService::Stub> stub;
};

PageClient::PageClient(std::shared_ptr<grpc::Channel> channel, TenantId tenant) {
  auto stub = v1::PageService::NewStub(channel);
  impl_.reset(new Impl{std::move(channel), std::move(tenant), std::move(stub)});
}
PageClient::~PageClient() = default;

absl::StatusOr<std::vector<absl::Status>> PageClient::Put(std::span<const PutItem> pages,
                                                          v1::Durability durability,
                                                          absl::Time deadline) {
  v1::BatchPutRequest request;
  request.set_durability(durability);
  for (const PutItem& item : pages) {
    v1::PagePut& page = *request.add_pages();
    page.set_key(ToText(item.key));
    page.set_crc32c(ComputeCrc32c(item.bytes).value());
    page.set_payload(item.bytes.data(), item.bytes.size());
  }
  KVTIER_ASSIGN_OR_RETURN(const v1::BatchPutResponse response,
                          impl_->Call(&v1::PageService::Stub::BatchPut, request, deadline));
  return StatusesOf(response.codes(), pages.size());
}

absl::StatusOr<std::vector<PageClient::Got>> PageClient::Get(std::span<const GetItem> pages,
                                                             absl::Time deadline) {
  v1::BatchGetRequest request;
  std::vector<MutableByteSpan> rooms;
  for (const GetItem& item : pages) {
    request.add_keys(ToText(item.key));
    rooms.push_back(item.room);
  }
  grpc::ClientContext context;
  impl_->Prepare(context, deadline);
  const grpc::ByteBuffer bytes = SerializeToByteBuffer(request);
  grpc::ByteBuffer response;
  const grpc::internal::RpcMethod method("/kvtier.v1.PageService/BatchGet",
                                         grpc::internal::RpcMethod::NORMAL_RPC);
  KVTIER_RETURN_IF_ERROR(
      FromGrpcStatus(grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
          impl_->channel.get(), method, &context, bytes, &response)));
  const absl::StatusOr<std::vector<PageGotView>> views = ReadBatchGetResponse(response, rooms);
  if (!views.ok()) return absl::InternalError(views.status().message());
  std::vector<Got> got;
  for (size_t i = 0; i < pages.size(); ++i) {
    const PageGotView& view = (*views)[i];
    Got& page = got.emplace_back();
    page.bytes = view.bytes;
    if (view.code != absl::StatusCode::kOk) {
      page.status = absl::Status(view.code, "");
    } else if (view.bytes > rooms[i].size()) {
      page.status = absl::OutOfRangeError(
          absl::StrCat("a page of ", view.bytes, " bytes, with room for ", rooms[i].size()));
    } else if (ComputeCrc32c(rooms[i].first(view.bytes)) != view.crc32c) {
      page.status = absl::DataLossError("the page does not match its CRC32C");
    }
  }
  return got;
}

absl::StatusOr<std::vector<bool>> PageClient::Exists(std::span<const PageKey> keys,
                                                     absl::Time deadline) {
  v1::BatchExistsRequest request;
  for (const PageKey& key : keys) request.add_keys(ToText(key));
  KVTIER_ASSIGN_OR_RETURN(const v1::BatchExistsResponse response,
                          impl_->Call(&v1::PageService::Stub::BatchExists, request, deadline));
  if (response.exists().size() != keys.size()) {
    return absl::InternalError("the store answered for another number of pages");
  }
  std::vector<bool> exists;
  for (const char one : response.exists()) exists.push_back(one != 0);
  return exists;
}

absl::StatusOr<std::vector<absl::Status>> PageClient::Delete(std::span<const PageKey> keys,
                                                             absl::Time deadline) {
  v1::BatchDeleteRequest request;
  for (const PageKey& key : keys) request.add_keys(ToText(key));
  KVTIER_ASSIGN_OR_RETURN(const v1::BatchDeleteResponse response,
                          impl_->Call(&v1::PageService::Stub::BatchDelete, request, deadline));
  return StatusesOf(response.codes(), keys.size());
}

absl::StatusOr<v1::PageStatsResponse> PageClient::Stats(absl::Time deadline) {
  return impl_->Call(&v1::PageService::Stub::PageStats, v1::PageStatsRequest(), deadline);
}

}  // namespace kvtier
