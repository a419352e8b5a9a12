#include "services/call_slots.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/fair_share.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {

absl::StatusOr<CallSlots::Slot> CallSlots::Admit(const grpc::ServerContextBase& context) {
  KVTIER_ASSIGN_OR_RETURN(TenantId tenant, TenantOf(context));
  return Take(std::move(tenant));
}

absl::StatusOr<CallSlots::Slot> CallSlots::Take(TenantId tenant) {
  if (drain_ != nullptr && !drain_->Enter()) {
    return DrainingError();
  }
  uint32_t own = 0;
  SlotAnswer answer = SlotAnswer::kYes;
  {
    MutexLock lock(&mutex_);
    const auto found = own_.find(tenant);
    if (found != own_.end()) own = found->second;
    answer = MayTakeSlot(own, taken_, calls_max_);
    if (answer == SlotAnswer::kYes) {
      ++taken_;
      ++own_[tenant];
    }
  }
  if (answer != SlotAnswer::kYes && drain_ != nullptr) drain_->Leave();
  switch (answer) {
    case SlotAnswer::kYes:
      return Slot(this, std::move(tenant));
    case SlotAnswer::kShareIsUsedUp:
      metrics_.calls_refused_share.Increment();
      // Not how many the others have: that is not this tenant's to know.
      return WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                "tenant ", tenant.name(), " has ", own, " ", kind_.calls,
                                " running, its share at this moment of the limit (", kind_.limit,
                                ") of ", calls_max_)),
                            retry_after_);
    case SlotAnswer::kAllAreTaken:
      break;
  }
  metrics_.calls_refused_busy.Increment();
  return WithRetryAfter(
      absl::ResourceExhaustedError(absl::StrCat(
          calls_max_, " ", kind_.calls, " are running already, the limit (", kind_.limit, ")")),
      retry_after_);
}

void CallSlots::Release(const TenantId& tenant) {
  {
    MutexLock lock(&mutex_);
    const auto found = own_.find(tenant);
    KVTIER_CHECK(found != own_.end() && taken_ > 0);
    --taken_;
    if (--found->second == 0) own_.erase(found);
  }
  if (drain_ != nullptr) drain_->Leave();  // Last: the server may go then.
}

uint32_t CallSlots::running() const {
  MutexLock lock(&mutex_);
  return taken_;
}

}  // namespace kvtier
