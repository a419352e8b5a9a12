// StoreService.FetchSmall: one request, one answer that has everything.
#ifndef KVTIER_SERVICES_FETCH_SMALL_CALL_H_
#define KVTIER_SERVICES_FETCH_SMALL_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"

namespace kvtier {

// Starts a call; it deletes itself when it is over. `environment` and `context` outlive it; so do
// `request` and `response`, until it has ended.
grpc::ServerUnaryReactor* StartFetchSmallCall(CallEnvironment& environment,
                                              const grpc::ServerContextBase& context,
                                              const v1::FetchSmallRequest& request,
                                              v1::FetchSmallResponse& response);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FETCH_SMALL_CALL_H_
