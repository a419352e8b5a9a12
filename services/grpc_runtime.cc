#include "services/grpc_runtime.h"

#include <grpc/grpc.h>

#include "absl/synchronization/mutex.h"

namespace kvtier {

void KeepGrpcRunning() {
  // gRPC counts its users. This one never goes.
  [[maybe_unused]] static const bool is_counted = [] {
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    grpc_init();
    return true;
  }();
}

}  // namespace kvtier
