#include "store/expiry_sweeper.h"

#include "base/limits.h"

namespace kvtier {

ExpirySweeper::ExpirySweeper(TieredStore& store, Clock& clock)
    : store_(store), clock_(clock), thread_([this] { Run(); }) {}

ExpirySweeper::~ExpirySweeper() {
  {
    MutexLock lock(&mutex_);
    is_stopping_ = true;
    stopped_.SignalAll();
  }
  thread_.join();
}

void ExpirySweeper::Run() {
  for (;;) {
    store_.RemoveExpired();
    MutexLock lock(&mutex_);
    const absl::Time next = clock_.Now() + limits::kExpirySweepInterval;
    while (!is_stopping_ && !clock_.WaitWithDeadline(&mutex_, &stopped_, next)) {
    }
    if (is_stopping_) return;
  }
}

}  // namespace kvtier
