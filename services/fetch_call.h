// StoreService.Fetch: one call streams the segments of one pinned upload, frame by frame.
#ifndef KVTIER_SERVICES_FETCH_CALL_H_
#define KVTIER_SERVICES_FETCH_CALL_H_

#include <cstdint>

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "base/limits.h"
#include "services/call_environment.h"

namespace kvtier {

// An answer of at most so many bytes of payload, all of it in host memory, goes along with its
// header: copied there, which costs less than messages of its own.
inline constexpr uint64_t kHeaderFramesBytesMax = 32 * limits::kKiB;

// Starts a call; it deletes itself when it is over. `environment` and `context` outlive it.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetchCall(CallEnvironment& environment,
                                                           const grpc::ServerContextBase& context,
                                                           const grpc::ByteBuffer& request);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FETCH_CALL_H_
