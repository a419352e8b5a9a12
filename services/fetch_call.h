// StoreService.Fetch: one call streams the segments of one pinned upload, frame by frame.
#ifndef KVTIER_SERVICES_FETCH_CALL_H_
#define KVTIER_SERVICES_FETCH_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "services/call_environment.h"

namespace kvtier {

// Starts a call; it deletes itself when it is over. `environment` and `context` outlive it.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetchCall(CallEnvironment& environment,
                                                           const grpc::ServerContextBase& context,
                                                           const grpc::ByteBuffer& request);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FETCH_CALL_H_
