// Threads for work that waits for a disk, so that gRPC's few callback threads never do. Bounded:
// the owner never has more jobs waiting than it announced.
#ifndef KVTIER_SERVICES_BLOCKING_POOL_H_
#define KVTIER_SERVICES_BLOCKING_POOL_H_

#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"

namespace kvtier {

// Thread-safe. The destructor runs what is queued, then joins.
class BlockingPool {
 public:
  BlockingPool(size_t threads, size_t jobs_max);
  ~BlockingPool();
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;

  // REQUIRES: fewer than `jobs_max` jobs wait.
  void Schedule(std::function<void()> job);

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_BLOCKING_POOL_H_
