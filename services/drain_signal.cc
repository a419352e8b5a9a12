#include "services/drain_signal.h"

#include <utility>

#include "base/log.h"

namespace kvtier {

std::unique_ptr<DrainSignal::Listener> DrainSignal::Listen(std::function<void()> on_fire) {
  MutexLock lock(&mutex_);
  if (has_fired_) return nullptr;
  const uint64_t id = next_id_++;
  listeners_.emplace(id, std::move(on_fire));
  return std::make_unique<Listener>(*this, id);
}

void DrainSignal::Fire() {
  for (;;) {
    std::function<void()> on_fire;  // Called without the lock, which it may want for others.
    {
      MutexLock lock(&mutex_);
      has_fired_ = true;
      if (listeners_.empty()) return;
      const auto first = listeners_.begin();
      running_ = first->first;
      on_fire = std::move(first->second);
      listeners_.erase(first);
    }
    on_fire();
    MutexLock lock(&mutex_);
    running_ = 0;
    called_.SignalAll();
  }
}

bool DrainSignal::Enter() {
  MutexLock lock(&mutex_);
  if (has_fired_) return false;
  ++calls_;
  return true;
}

void DrainSignal::Leave() {
  MutexLock lock(&mutex_);
  KVTIER_CHECK(calls_ > 0);
  if (--calls_ == 0) idle_.SignalAll();
}

bool DrainSignal::AwaitCalls(absl::Time end, Clock& clock) {
  MutexLock lock(&mutex_);
  while (calls_ > 0) {
    if (clock.WaitWithDeadline(&mutex_, &idle_, end)) return calls_ == 0;
  }
  return true;
}

bool DrainSignal::has_fired() const {
  MutexLock lock(&mutex_);
  return has_fired_;
}

void DrainSignal::Forget(uint64_t id) {
  MutexLock lock(&mutex_);
  listeners_.erase(id);
  while (running_ == id) called_.Wait(&mutex_);
}

absl::Status DrainingError() { return absl::UnavailableError("the server is stopping"); }

absl::Status CheckNotDraining(const DrainSignal* drain) {
  return drain != nullptr && drain->has_fired() ? DrainingError() : absl::OkStatus();
}

}  // namespace kvtier
