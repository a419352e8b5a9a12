// A fixed number of threads that help whoever asks. The asking thread works on its own loop too, so
// that every caller makes progress, whatever the pool is busy with; pool threads take turns between
// the loops that are open. There is no queue to fill: each open loop lives on its caller's stack.
#ifndef KVTIER_COMPRESSOR_THREAD_POOL_H_
#define KVTIER_COMPRESSOR_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "base/mutex.h"

namespace kvtier {

// Thread-safe. Destroyed when no loop is open; its threads are joined then.
class ThreadPool {
 public:
  // `threads` counts the caller: threads - 1 are started (fewer if the system refuses). 0: one per
  // core.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls run(0) .. run(tasks - 1), each once, in any order, on this thread and idle pool threads.
  // Returns when all have returned. `run` must not throw and must not call For of the same pool.
  void For(int64_t tasks, absl::FunctionRef<void(int64_t task)> run) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Loop {
    Loop(int64_t task_count, absl::FunctionRef<void(int64_t)> function)
        : tasks(task_count), run(function) {}
    void Work();
    const int64_t tasks;
    const absl::FunctionRef<void(int64_t)> run;
    std::atomic<int64_t> next{0};  // Tasks below it are taken.
    int helpers = 0;               // Pool threads inside Work; guarded by the pool's mutex.
  };
  void HelpUntilStopped() ABSL_LOCKS_EXCLUDED(mutex_);

  Mutex mutex_;
  CondVar opened_;                                   // A loop was opened, or stop.
  CondVar left_;                                     // A pool thread left a loop.
  std::deque<Loop*> loops_ ABSL_GUARDED_BY(mutex_);  // With tasks left to take, maybe.
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_THREAD_POOL_H_
