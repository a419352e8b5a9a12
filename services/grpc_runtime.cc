#include "services/grpc_runtime.h"

#include <grpc/grpc.h>

namespace kvtier {

void KeepGrpcRunning() {
  // gRPC counts its users. This one never goes.
  [[maybe_unused]] static const bool is_counted = [] {
    grpc_init();
    return true;
  }();
}

}  // namespace kvtier
