// Which calls of a service run now: at most so many, shared among tenants so that none keeps the
// others out (base/fair_share.h). A call has its slot until the object that stands for it goes, so
// also while gRPC still sends its answer.
#ifndef KVTIER_SERVICES_CALL_SLOTS_H_
#define KVTIER_SERVICES_CALL_SLOTS_H_

#include <cstdint>
#include <utility>

#include <grpcpp/server_context.h>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "kvcache/ids.h"
#include "services/drain_signal.h"
#include "services/metrics.h"

namespace kvtier {

// How a refusal calls what is limited, and the limit. Literals.
struct CallKind {
  absl::string_view calls = "calls";
  absl::string_view limit = "calls_max";
};

// Thread-safe. Must outlive its slots.
class CallSlots {
 public:
  // `retry_after`: what a refused caller is told to wait. Counts refusals into `metrics`. Calls
  // begin and end with `drain`, if there is one. Both must outlive it.
  CallSlots(uint32_t calls_max, absl::Duration retry_after, Metrics& metrics,
            const CallKind& kind = {}, DrainSignal* drain = nullptr)
      : calls_max_(calls_max),
        retry_after_(retry_after),
        metrics_(metrics),
        kind_(kind),
        drain_(drain) {}

  class Slot {
   public:
    Slot() = default;  // None.
    Slot(Slot&& other) noexcept
        : slots_(std::exchange(other.slots_, nullptr)), tenant_(std::move(other.tenant_)) {}
    Slot& operator=(Slot&& other) noexcept {
      std::swap(slots_, other.slots_);
      std::swap(tenant_, other.tenant_);
      return *this;
    }
    ~Slot() {
      if (slots_ != nullptr) slots_->Release(tenant_);
    }
    const TenantId& tenant() const { return tenant_; }

   private:
    friend class CallSlots;
    Slot(CallSlots* slots, TenantId tenant) : slots_(slots), tenant_(std::move(tenant)) {}
    CallSlots* slots_ = nullptr;
    TenantId tenant_;
  };

  // For a call that has arrived, on behalf of the tenant that it names (services/tenant.h).
  //   INVALID_ARGUMENT    no tenant can have that name
  //   RESOURCE_EXHAUSTED  with a retry delay: all slots are taken, or the tenant's share
  //   UNAVAILABLE         the server is stopping
  absl::StatusOr<Slot> Admit(const grpc::ServerContextBase& context);
  absl::StatusOr<Slot> Take(TenantId tenant) ABSL_LOCKS_EXCLUDED(mutex_);

  uint32_t running() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Release(const TenantId& tenant) ABSL_LOCKS_EXCLUDED(mutex_);

  const uint32_t calls_max_;
  const absl::Duration retry_after_;
  Metrics& metrics_;
  const CallKind kind_;
  DrainSignal* const drain_;  // May be null.
  mutable Mutex mutex_;
  uint32_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  // Calls of each tenant that has any: at most calls_max_ entries.
  absl::flat_hash_map<TenantId, uint32_t> own_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_CALL_SLOTS_H_
