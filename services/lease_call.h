// StoreService.Lease: the stream holds leases until it releases them or ends, however it ends.
#ifndef KVTIER_SERVICES_LEASE_CALL_H_
#define KVTIER_SERVICES_LEASE_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"

namespace kvtier {

// Starts a call; it deletes itself when it is over. `environment` and `context` outlive it.
grpc::ServerBidiReactor<v1::LeaseRequest, v1::LeaseResponse>* StartLeaseCall(
    CallEnvironment& environment, const grpc::ServerContextBase& context);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LEASE_CALL_H_
