// What all calls on StoreService share: admission, a pool for work that waits for the disk,
// counting. Private to the service.
#ifndef KVTIER_SERVICES_CALL_ENVIRONMENT_H_
#define KVTIER_SERVICES_CALL_ENVIRONMENT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "services/blocking_pool.h"
#include "services/load_times.h"
#include "services/metrics.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/tiered_store.h"

namespace kvtier {

// What a refused caller is told to wait: until a call ends; until eviction or somebody made room.
inline constexpr absl::Duration kBusyRetryDelay = absl::Milliseconds(200);
inline constexpr absl::Duration kFullRetryDelay = absl::Seconds(2);

// Thread-safe.
class CallEnvironment {
 public:
  CallEnvironment(const StoreServiceOptions& options, TieredStore& store, Metrics& metrics,
                  Clock& clock)
      : options_(options),
        store_(store),
        metrics_(metrics),
        clock_(clock),
        pool_(options.pool_threads, options.calls_max) {}

  // RESOURCE_EXHAUSTED when too many calls run. Every admitted call ends with one Release.
  absl::Status Admit() {
    if (running_.fetch_add(1) < options_.calls_max) return absl::OkStatus();
    running_.fetch_sub(1);
    return WithRetryAfter(absl::ResourceExhaustedError(
                              absl::StrCat(options_.calls_max, " calls are running already")),
                          kBusyRetryDelay);
  }
  void Release() { running_.fetch_sub(1); }

  // An admitted call has at most one job at a time, so that the pool's queue is never full.
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
  std::atomic<uint32_t> running_{0};
  BlockingPool pool_;  // Last: its threads end before the rest goes.
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_CALL_ENVIRONMENT_H_
