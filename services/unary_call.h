// One unary call of a callback service: admitted on behalf of its tenant, counted when it ends. It
// keeps its slot until gRPC has handed the whole answer to the connection: who does not take its
// answers holds slots of its own, and what the answers reference stays bounded by them.
//
//   UnaryCall* const call = new UnaryCall("Stats", metrics, clock);
//   if (call->Admit(slots, *context)) call->End(Stats(call->tenant(), *request, *response));
//   return call;
#ifndef KVTIER_SERVICES_UNARY_CALL_H_
#define KVTIER_SERVICES_UNARY_CALL_H_

#include <utility>

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "services/call_slots.h"
#include "services/metrics.h"
#include "services/status_grpc.h"

namespace kvtier {

// Deletes itself when the call is over, which may be as soon as End is called. Whoever works on the
// call calls End, once.
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  // `method`, a literal, `metrics` and `clock` outlive it.
  UnaryCall(const char* method, Metrics& metrics, Clock& clock)
      : method_(method), metrics_(metrics), clock_(clock), start_(clock.Now()) {}

  // False: refused, and ended. `slots` outlive the call.
  bool Admit(CallSlots& slots, const grpc::ServerContextBase& context) {
    absl::StatusOr<CallSlots::Slot> slot = slots.Admit(context);
    if (!slot.ok()) {
      End(slot.status());
      return false;
    }
    slot_ = *std::move(slot);
    return true;
  }
  const TenantId& tenant() const { return slot_.tenant(); }

  // Counts before the caller hears of the end, so that who asks next sees it counted.
  void End(const absl::Status& status) {
    metrics_.CountRpc(method_, status, clock_.Now() - start_);
    Finish(ToGrpcStatus(status));
  }

  void OnDone() override { delete this; }

 private:
  ~UnaryCall() override = default;

  const char* const method_;
  Metrics& metrics_;
  Clock& clock_;
  const absl::Time start_;
  CallSlots::Slot slot_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_UNARY_CALL_H_
