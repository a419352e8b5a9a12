// Upstream: absl/time/simulated_clock.h, once the packaged abseil carries it.
//
// A Clock whose time moves only when a test says so. AdvanceTime wakes the threads whose deadline
// it reaches. Thread-safe: any method from any thread.
//
//   SimulatedClock clock;
//   std::thread worker([&] { clock.SleepFor(absl::Seconds(5)); });
//   clock.AwaitWaiters(1);  // Without this the worker may read the time only after the advance.
//   clock.AdvanceTime(absl::Seconds(5));
//   worker.join();
#ifndef KVTIER_BASE_SIMULATED_CLOCK_H_
#define KVTIER_BASE_SIMULATED_CLOCK_H_

#include <list>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"

namespace kvtier {

class SimulatedClock final : public Clock {
 public:
  // 2026-01-01 00:00:00 UTC: a plausible time, so that durations are never confused with times.
  static absl::Time DefaultStart() { return absl::FromUnixSeconds(1'767'225'600); }

  explicit SimulatedClock(absl::Time start = DefaultStart()) : now_(start) {}
  SimulatedClock(const SimulatedClock&) = delete;
  SimulatedClock& operator=(const SimulatedClock&) = delete;

  absl::Time Now() override;
  void SleepFor(absl::Duration duration) override;
  bool WaitWithDeadline(Mutex* mutex, CondVar* cond, absl::Time deadline) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Moves the time forward and wakes every thread whose deadline has come.
  // REQUIRES: `duration` >= 0; the caller holds no mutex that a waiter passed in.
  void AdvanceTime(absl::Duration duration);

  // As AdvanceTime up to `time`, for a time in the past: nothing. Same requirement.
  void AdvanceTo(absl::Time time);

  // Blocks, in real time, until at least `count` threads wait in SleepFor or WaitWithDeadline.
  void AwaitWaiters(int count);

  // Threads that wait now; one whose deadline has come no longer counts, even before it runs.
  int waiter_count();

 private:
  // One thread inside WaitWithDeadline; lives on its stack.
  struct Waiter {
    Mutex* mutex;
    CondVar* cond;
    absl::Time deadline;
    bool waking = false;  // An advance is about to use `mutex` and `cond`.
  };

  int CountWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<Waiter*> MarkDueWaiters() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake(const std::vector<Waiter*>& due) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lock order: a waiter's own mutex before mutex_. An advance needs a waiter's mutex after it has
  // found it in waiters_, so it marks it `waking`, lets mutex_ go, and the waiter stays until the
  // mark is cleared: its mutex and condition cannot die under the advance.
  Mutex mutex_;
  CondVar changed_;  // waiters_ grew, or a `waking` mark was cleared.
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
  std::list<Waiter*> waiters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_BASE_SIMULATED_CLOCK_H_
