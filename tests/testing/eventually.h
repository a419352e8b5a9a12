// Waits for what another thread or process does, where nothing can be waited on: looks again and
// again.
#ifndef KVTIER_TESTS_TESTING_EVENTUALLY_H_
#define KVTIER_TESTS_TESTING_EVENTUALLY_H_

#include <functional>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace kvtier {

// Whether `condition` became true; `limit` is generous, for a slow machine.
inline bool Eventually(const std::function<bool()>& condition,
                       absl::Duration limit = absl::Seconds(50)) {
  Mutex mutex;
  CondVar never;
  MutexLock lock(&mutex);
  for (const absl::Time end = absl::Now() + limit; absl::Now() < end;) {
    if (condition()) return true;
    never.WaitWithTimeout(&mutex, absl::Milliseconds(2));  // Woken by nobody: looks again.
  }
  return false;
}

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_EVENTUALLY_H_
