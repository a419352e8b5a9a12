// StoreService.Watch: one call streams a snapshot of the tenant's objects, if one is needed, and
// then each change of them, until the caller, or the store, goes.
#ifndef KVTIER_SERVICES_WATCH_CALL_H_
#define KVTIER_SERVICES_WATCH_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"

namespace kvtier {

// Starts a call; it deletes itself when it is over. `environment` and `context` outlive it. It
// holds no thread while nothing happens.
grpc::ServerWriteReactor<v1::WatchResponse>* StartWatchCall(CallEnvironment& environment,
                                                            const grpc::ServerContextBase& context,
                                                            const v1::WatchRequest& request);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_WATCH_CALL_H_
