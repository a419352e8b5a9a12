// Decides which compressions run: joins requests for one key into one computation, bounds how many
// wait, and admits each by an estimate of its memory before anything is allocated for it.
//
// Life of a job: waiting -> running -> finished. Invariants, under mutex_:
//   1. jobs_ has one entry per key that is waiting or running, and never a finished one.
//   2. The reservations of running jobs add up to at most Options::memory_bytes_max.
//   3. A job has at least one waiter, or its cancel token has fired.
//   4. Waiting jobs start in order of arrival; a large one at the head is not overtaken.
//
// Knows nothing of gRPC or models: the computation is a function.
#ifndef KVTIER_SERVICES_COMPRESS_QUEUE_H_
#define KVTIER_SERVICES_COMPRESS_QUEUE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>  // NOLINT(build/c++11)
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/cancel_token.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "kvcache/ids.h"
#include "kvtier/v1/compressor.pb.h"
#include "services/metrics.h"

namespace kvtier {

// Thread-safe.
class CompressQueue {
 public:
  using Progress = std::function<void(const v1::CompressProgress&)>;
  // Runs on a pool thread. Reports progress through its argument; returns soon after cancel fires.
  using Compute =
      std::function<absl::StatusOr<v1::CompressResult>(const Progress&, const CancelToken&)>;

  struct Options {
    uint32_t pool_threads = 1;  // Computations at once; each may use all cores.
    uint32_t queue_max = limits::kCompressQueueMax;
    uint32_t waiters_per_key_max = limits::kCompressWaitersPerKeyMax;
    uint64_t memory_bytes_max = 0;                  // Of all running jobs together; 0: unbounded.
    absl::Duration retry_after = absl::Seconds(2);  // Told to callers that are refused.
  };

  // Counts into `metrics`' kvtier_compress_*. Both must outlive the queue.
  CompressQueue(Options options, Metrics& metrics, Clock& clock);
  // Cancels everything and joins.
  ~CompressQueue();

  // Blocks until the computation of `key` has ended, giving its result to every waiter. Joins a
  // waiting or running one; otherwise queues `compute` with a reservation of `memory_bytes`.
  // `on_progress` is called on this thread with the newest state (states may be skipped). `alive`
  // is asked a few times per second: when it turns false this waiter leaves with CANCELLED.
  //   RESOURCE_EXHAUSTED with a retry delay: queue or waiters full. Without: `memory_bytes` alone
  //   is above memory_bytes_max, so waiting cannot help (named with the limit). CANCELLED: left, or
  //   the queue is shutting down. Else what the computation returned.
  absl::StatusOr<v1::CompressResult> Run(const Key& key, uint64_t memory_bytes, Compute compute,
                                         const Progress& on_progress,
                                         const std::function<bool()>& alive);

  // Refuses new work, cancels waiting and running jobs; their waiters get UNAVAILABLE.
  void Shutdown();

 private:
  struct Job;
  void PoolThread();
  bool CanStartLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishLocked(const std::shared_ptr<Job>& job, absl::StatusOr<v1::CompressResult> result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExportLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // Gauges.
  void LeaveLocked(const std::shared_ptr<Job>& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  Metrics& metrics_;
  Clock& clock_;
  Mutex mutex_;
  CondVar work_;  // Signalled when a waiting job may be able to start, and at shutdown.
  absl::flat_hash_map<Key, std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Job>> waiting_ ABSL_GUARDED_BY(mutex_);
  uint64_t reserved_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // By running jobs.
  bool shutdown_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> pool_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_COMPRESS_QUEUE_H_
