// StoreService.Put: one call receives the segments of one upload and seals it.
#ifndef KVTIER_SERVICES_PUT_CALL_H_
#define KVTIER_SERVICES_PUT_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "services/call_environment.h"

namespace kvtier {

// Starts a call; it deletes itself when it is over. `environment`, `context` and `response` outlive
// it.
grpc::ServerReadReactor<grpc::ByteBuffer>* StartPutCall(CallEnvironment& environment,
                                                        const grpc::ServerContextBase& context,
                                                        grpc::ByteBuffer* response);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PUT_CALL_H_
