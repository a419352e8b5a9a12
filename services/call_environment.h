// What all calls on StoreService share: slots, a pool for work that waits for the disk, counting.
// Private to the service.
#ifndef KVTIER_SERVICES_CALL_ENVIRONMENT_H_
#define KVTIER_SERVICES_CALL_ENVIRONMENT_H_

#include <cstddef>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "services/blocking_pool.h"
#include "services/call_slots.h"
#include "services/load_times.h"
#include "services/metrics.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/tiered_store.h"

namespace kvtier {

// What a refused caller is told to wait: until a call ends; until eviction or somebody made room.
inline constexpr absl::Duration kBusyRetryDelay = absl::Milliseconds(200);
inline constexpr absl::Duration kFullRetryDelay = absl::Seconds(2);

// What a caller hears of a tier, a quota or a pool that is full: when to come back, unless the
// status says that already, or that nothing but a larger limit would help.
inline absl::Status WithRetryIfFull(absl::Status status) {
  if (!absl::IsResourceExhausted(status) || RetryAfter(status).has_value()) return status;
  return WithRetryAfter(std::move(status), kFullRetryDelay);
}

// Thread-safe.
class CallEnvironment {
 public:
  CallEnvironment(const StoreServiceOptions& options, TieredStore& store, Metrics& metrics,
                  Clock& clock)
      : options_(options),
        store_(store),
        metrics_(metrics),
        clock_(clock),
        slots_(options.calls_max, kBusyRetryDelay, metrics, {}, options.drain),
        lease_slots_(options.lease_streams_max, kFullRetryDelay, metrics,
                     {.calls = "Lease streams", .limit = "lease_streams_max"}, options.drain),
        pool_(options.pool_threads,
              kJobsMax * (size_t{options.calls_max} + options.lease_streams_max)) {}

  // Every call takes one first, and has it until it is over: a Lease stream one of lease_slots,
  // since it lasts as long as its client likes, any other call one of slots.
  CallSlots& slots() { return slots_; }
  CallSlots& lease_slots() { return lease_slots_; }

  // A call with a slot has at most kJobsMax jobs at a time, so that the pool's queue is never full.
  static constexpr size_t kJobsMax = 2;
  void Schedule(std::function<void()> job) { pool_.Schedule(std::move(job)); }

  void Count(absl::string_view method, const absl::Status& status, absl::Time start) {
    metrics_.CountRpc(method, status, clock_.Now() - start);
  }

  const StoreServiceOptions& options() const { return options_; }
  TieredStore& store() { return store_; }
  Metrics& metrics() { return metrics_; }
  Clock& clock() { return clock_; }
  LoadTimes& load_times() { return load_times_; }

 private:
  const StoreServiceOptions options_;
  TieredStore& store_;
  Metrics& metrics_;
  Clock& clock_;
  LoadTimes load_times_;
  CallSlots slots_;
  CallSlots lease_slots_;
  BlockingPool pool_;  // Last: its threads end before the rest goes.
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_CALL_ENVIRONMENT_H_
