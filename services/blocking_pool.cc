#include "services/blocking_pool.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/log.h"

namespace kvtier {

BlockingPool::BlockingPool(size_t threads, size_t jobs_max) : queue_(jobs_max, Clock::Real()) {
  for (size_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      for (auto job = queue_.Pop(absl::InfiniteFuture()); job.ok();
           job = queue_.Pop(absl::InfiniteFuture())) {
        (*job)();
      }
    });
  }
}

BlockingPool::~BlockingPool() {
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
}

void BlockingPool::Schedule(std::function<void()> job) {
  KVTIER_CHECK(queue_.TryPush(std::move(job))) << "more jobs than announced, or after the end";
}

}  // namespace kvtier
