// The only mapping between absl::Status and grpc::Status. Codes are the same numbers; a
// RESOURCE_EXHAUSTED or UNAVAILABLE that carries a retry delay has google.rpc.RetryInfo details.
#ifndef KVTIER_SERVICES_STATUS_GRPC_H_
#define KVTIER_SERVICES_STATUS_GRPC_H_

#include <optional>
#include <string>

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace kvtier {

grpc::Status ToGrpcStatus(const absl::Status& status);
// For calls that the caller did not cancel itself: gRPC says CANCELLED, too, when the server
// cancels, or begins to stop as the call comes. That is UNAVAILABLE here: the caller tries again.
absl::Status FromGrpcStatus(const grpc::Status& status);

// The same as a serialized google.rpc.Status, for messages that carry a status of their own.
// Unreadable bytes are INTERNAL; `status` must not be OK.
std::string RpcStatusBytes(const absl::Status& status);
absl::Status StatusFromRpcStatusBytes(const std::string& bytes);

// Attaches and reads "try again after": survives both mappings. What is too large
// (base/too_large.h) stays as it is: no delay would help.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_STATUS_GRPC_H_
