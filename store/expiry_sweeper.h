// Removes the bytes of expired objects in the background, every limits::kExpirySweepInterval. They
// are misses without it; it is what gives their room back, and tells watchers.
#ifndef KVTIER_STORE_EXPIRY_SWEEPER_H_
#define KVTIER_STORE_EXPIRY_SWEEPER_H_

#include <thread>

#include "absl/base/thread_annotations.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "store/tiered_store.h"

namespace kvtier {

// Owns a thread, which ends with it. `store` and `clock` must outlive it.
class ExpirySweeper {
 public:
  ExpirySweeper(TieredStore& store, Clock& clock);
  ~ExpirySweeper();
  ExpirySweeper(const ExpirySweeper&) = delete;
  ExpirySweeper& operator=(const ExpirySweeper&) = delete;

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  TieredStore& store_;
  Clock& clock_;
  Mutex mutex_;
  CondVar stopped_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: it runs from its construction on.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_EXPIRY_SWEEPER_H_
