// The calls of StoreService that have one request and one response: each checks the request, asks
// the store, fills the response. They may wait for the disk. Codes: store.proto.
#ifndef KVTIER_SERVICES_STORE_UNARY_CALLS_H_
#define KVTIER_SERVICES_STORE_UNARY_CALLS_H_

#include "absl/status/status.h"
#include "kvcache/ids.h"
#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"

namespace kvtier::store_calls {

absl::Status QueryUpload(CallEnvironment& environment, const TenantId& tenant,
                         const v1::QueryUploadRequest& request, v1::QueryUploadResponse& response);
absl::Status GetObject(CallEnvironment& environment, const TenantId& tenant,
                       const v1::GetObjectRequest& request, v1::GetObjectResponse& response);
absl::Status List(CallEnvironment& environment, const TenantId& tenant,
                  const v1::ListRequest& request, v1::ListResponse& response);
absl::Status Delete(CallEnvironment& environment, const TenantId& tenant,
                    const v1::DeleteRequest& request, v1::DeleteResponse& response);
absl::Status Verify(CallEnvironment& environment, const TenantId& tenant,
                    const v1::VerifyRequest& request, v1::VerifyResponse& response);
absl::Status SetAttributes(CallEnvironment& environment, const TenantId& tenant,
                           const v1::SetAttributesRequest& request,
                           v1::SetAttributesResponse& response);
absl::Status Stats(CallEnvironment& environment, const TenantId& tenant,
                   const v1::StatsRequest& request, v1::StatsResponse& response);

}  // namespace kvtier::store_calls

#endif  // KVTIER_SERVICES_STORE_UNARY_CALLS_H_
