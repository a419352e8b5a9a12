// StoreService.DeleteMany: one call goes through the tenant's objects page by page, removes those
// that are meant, and says after each page how far it is.
#ifndef KVTIER_SERVICES_DELETE_MANY_CALL_H_
#define KVTIER_SERVICES_DELETE_MANY_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"

namespace kvtier {

// Starts a call; it deletes itself when it is over. `environment` and `context` outlive it. When
// the caller goes, it stops after the page that it is at.
grpc::ServerWriteReactor<v1::DeleteManyResponse>* StartDeleteManyCall(
    CallEnvironment& environment, const grpc::ServerContextBase& context,
    const v1::DeleteManyRequest& request);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_DELETE_MANY_CALL_H_
