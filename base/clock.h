// Upstream: absl/time/clock_interface.h, once the packaged abseil carries it.
//
// The time, and waiting for it. Everything that looks at the time or waits with a deadline takes a
// Clock& in its constructor: programs pass Clock::Real(), tests a SimulatedClock that they advance.
// Thread-safe: any method from any thread.
//
//   MutexLock lock(&mutex_);
//   while (queue_.empty()) {
//     if (clock_.WaitWithDeadline(&mutex_, &not_empty_, deadline) && queue_.empty()) {
//       return absl::DeadlineExceededError("");
//     }
//   }
#ifndef KVTIER_BASE_CLOCK_H_
#define KVTIER_BASE_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace kvtier {

class Clock {
 public:
  virtual ~Clock() = default;

  // The clock of the machine. Lives until the process ends.
  static Clock& Real();

  virtual absl::Time Now() = 0;

  // Blocks this thread for at least `duration`; returns at once if it is zero or negative.
  virtual void SleepFor(absl::Duration duration) = 0;

  // Releases `mutex`, waits until `cond` is signalled or Now() >= `deadline`, takes `mutex` again.
  // absl::InfiniteFuture() waits for the signal alone. True if the deadline has passed. May return
  // false without a signal: callers loop over their condition.
  // REQUIRES: `mutex` and `cond` live until the call returns; waiters on `cond` all use `mutex`.
  virtual bool WaitWithDeadline(Mutex* mutex, CondVar* cond, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_BASE_CLOCK_H_
