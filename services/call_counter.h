// Counts the calls of services with blocking methods for a DrainSignal, from before the method
// begins until gRPC has sent its answer, which is after the method has returned. Services with
// callbacks know that moment themselves (services/call_slots.h).
#ifndef KVTIER_SERVICES_CALL_COUNTER_H_
#define KVTIER_SERVICES_CALL_COUNTER_H_

#include <memory>

#include <grpcpp/support/server_interceptor.h>

#include "services/drain_signal.h"

namespace kvtier {

// For grpc::ServerBuilder. Counts calls of our own services; health and reflection, whose streams
// last as long as their client likes, are left to gRPC. Counting refuses nothing: a method that
// begins after Fire() does so itself (CheckNotDraining). `drain` outlives every call.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallCounter(
    DrainSignal& drain);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_CALL_COUNTER_H_
