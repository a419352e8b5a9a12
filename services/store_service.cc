#include "services/store_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/call_environment.h"
#include "services/delete_many_call.h"
#include "services/fetch_call.h"
#include "services/fetch_small_call.h"
#include "services/lease_call.h"
#include "services/lookup_call.h"
#include "services/put_call.h"
#include "services/store_unary_calls.h"
#include "services/unary_call.h"
#include "services/watch_call.h"

namespace kvtier {
namespace {

using LeaseService = v1::StoreService::WithCallbackMethod_Lease<
    v1::StoreService::WithCallbackMethod_FetchSmall<v1::StoreService::Service>>;
using RawStoreService = v1::StoreService::WithRawCallbackMethod_Put<
    v1::StoreService::WithRawCallbackMethod_Fetch<v1::StoreService::WithCallbackMethod_QueryUpload<
        v1::StoreService::WithCallbackMethod_GetObject<v1::StoreService::WithCallbackMethod_List<
            v1::StoreService::WithCallbackMethod_Delete<v1::StoreService::WithCallbackMethod_Verify<
                v1::StoreService::WithCallbackMethod_Lookup<
                    v1::StoreService::WithCallbackMethod_Stats<
                        v1::StoreService::WithCallbackMethod_SetAttributes<
                            v1::StoreService::WithCallbackMethod_DeleteMany<
                                v1::StoreService::WithCallbackMethod_Watch<LeaseService>>>>>>>>>>>>;

class StoreServiceImpl final : public RawStoreService {
 public:
  StoreServiceImpl(const StoreServiceOptions& options, TieredStore& store, Metrics& metrics,
                   Clock& clock)
      : environment_(options, store, metrics, clock) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Fetch(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override {
    return StartFetchCall(environment_, *context, *request);
  }
  grpc::ServerUnaryReactor* FetchSmall(grpc::CallbackServerContext* context,
                                       const v1::FetchSmallRequest* request,
                                       v1::FetchSmallResponse* response) override {
    return StartFetchSmallCall(environment_, *context, *request, *response);
  }
  grpc::ServerReadReactor<grpc::ByteBuffer>* Put(grpc::CallbackServerContext* context,
                                                 grpc::ByteBuffer* response) override {
    return StartPutCall(environment_, *context, response);
  }
  grpc::ServerBidiReactor<v1::LeaseRequest, v1::LeaseResponse>* Lease(
      grpc::CallbackServerContext* context) override {
    return StartLeaseCall(environment_, *context);
  }
  grpc::ServerUnaryReactor* QueryUpload(grpc::CallbackServerContext* context,
                                        const v1::QueryUploadRequest* request,
                                        v1::QueryUploadResponse* response) override {
    return RunUnary("QueryUpload", store_calls::QueryUpload, context, request, response);
  }
  grpc::ServerUnaryReactor* GetObject(grpc::CallbackServerContext* context,
                                      const v1::GetObjectRequest* request,
                                      v1::GetObjectResponse* response) override {
    return RunUnary("GetObject", store_calls::GetObject, context, request, response);
  }
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListRequest* request,
                                 v1::ListResponse* response) override {
    return RunUnary("List", store_calls::List, context, request, response);
  }
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const v1::DeleteRequest* request,
                                   v1::DeleteResponse* response) override {
    return RunUnary("Delete", store_calls::Delete, context, request, response);
  }
  grpc::ServerUnaryReactor* Verify(grpc::CallbackServerContext* context,
                                   const v1::VerifyRequest* request,
                                   v1::VerifyResponse* response) override {
    return RunUnary("Verify", store_calls::Verify, context, request, response);
  }
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context,
                                   const v1::LookupRequest* request,
                                   v1::LookupResponse* response) override {
    return RunUnary("Lookup", store_calls::Lookup, context, request, response);
  }
  grpc::ServerUnaryReactor* SetAttributes(grpc::CallbackServerContext* context,
                                          const v1::SetAttributesRequest* request,
                                          v1::SetAttributesResponse* response) override {
    return RunUnary("SetAttributes", store_calls::SetAttributes, context, request, response);
  }
  grpc::ServerWriteReactor<v1::DeleteManyResponse>* DeleteMany(
      grpc::CallbackServerContext* context, const v1::DeleteManyRequest* request) override {
    return StartDeleteManyCall(environment_, *context, *request);
  }
  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(grpc::CallbackServerContext* context,
                                                     const v1::WatchRequest* request) override {
    return StartWatchCall(environment_, *context, *request);
  }
  grpc::ServerUnaryReactor* Stats(grpc::CallbackServerContext* context,
                                  const v1::StatsRequest* request,
                                  v1::StatsResponse* response) override {
    return RunUnary("Stats", store_calls::Stats, context, request, response);
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
    auto* const call = new UnaryCall(name, environment_.metrics(), environment_.clock());
    if (call->Admit(environment_.slots(), *context)) {
      environment_.Schedule([=, this] {
        call->End(WithRetryIfFull(method(environment_, call->tenant(), *request, *response)));
      });
    }
    return call;
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
