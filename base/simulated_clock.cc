#include "base/simulated_clock.h"

#include <algorithm>
#include <vector>

#include "base/log.h"

namespace kvtier {

absl::Time SimulatedClock::Now() {
  MutexLock lock(&mutex_);
  return now_;
}

void SimulatedClock::SleepFor(absl::Duration duration) {
  const absl::Time deadline = Now() + std::max(duration, absl::ZeroDuration());
  Mutex mutex;
  CondVar cond;
  MutexLock lock(&mutex);
  while (!WaitWithDeadline(&mutex, &cond, deadline)) {
  }
}

bool SimulatedClock::WaitWithDeadline(Mutex* mutex, CondVar* cond, absl::Time deadline) {
  Waiter waiter{.mutex = mutex, .cond = cond, .deadline = deadline};
  {
    MutexLock lock(&mutex_);
    if (now_ >= deadline) return true;
    waiters_.push_back(&waiter);
    changed_.SignalAll();
  }
  // An advance from here on finds the waiter but needs `mutex` to signal it, and gets that only
  // when the wait below has begun: no signal is lost.
  cond->Wait(mutex);
  mutex_.Lock();
  waiters_.remove(&waiter);
  if (waiter.waking) {
    // Woken by another signal meanwhile. Let the advance have `mutex`, and stay until it is done.
    mutex->Unlock();
    while (waiter.waking) changed_.Wait(&mutex_);
    const bool expired = now_ >= deadline;
    mutex_.Unlock();
    mutex->Lock();
    return expired;
  }
  const bool expired = now_ >= deadline;
  mutex_.Unlock();
  return expired;
}

void SimulatedClock::AdvanceTime(absl::Duration duration) {
  KVTIER_CHECK_GE(duration, absl::ZeroDuration());
  std::vector<Waiter*> due;
  {
    MutexLock lock(&mutex_);
    now_ += duration;
    due = MarkDueWaiters();
  }
  Wake(due);
}

void SimulatedClock::AdvanceTo(absl::Time time) {
  std::vector<Waiter*> due;
  {
    MutexLock lock(&mutex_);
    now_ = std::max(now_, time);
    due = MarkDueWaiters();
  }
  Wake(due);
}

std::vector<SimulatedClock::Waiter*> SimulatedClock::MarkDueWaiters() {
  std::vector<Waiter*> due;
  for (Waiter* waiter : waiters_) {
    // One that another advance is waking already will see the new time.
    if (waiter->deadline > now_ || waiter->waking) continue;
    waiter->waking = true;
    due.push_back(waiter);
  }
  return due;
}

void SimulatedClock::Wake(const std::vector<Waiter*>& due) {
  for (Waiter* waiter : due) {
    waiter->mutex->Lock();
    waiter->cond->SignalAll();
    waiter->mutex->Unlock();
    MutexLock lock(&mutex_);
    waiter->waking = false;
    changed_.SignalAll();
  }
}

void SimulatedClock::AwaitWaiters(int count) {
  MutexLock lock(&mutex_);
  while (CountWaiting() < count) changed_.Wait(&mutex_);
}

int SimulatedClock::waiter_count() {
  MutexLock lock(&mutex_);
  return CountWaiting();
}

int SimulatedClock::CountWaiting() const {
  return static_cast<int>(std::ranges::count_if(
      waiters_, [now = now_](const Waiter* waiter) { return waiter->deadline > now; }));
}

}  // namespace kvtier
