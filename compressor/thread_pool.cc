#include "compressor/thread_pool.h"

#include <algorithm>
#include <system_error>

namespace kvtier {

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  threads_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { HelpUntilStopped(); });
  } catch (const std::system_error&) {
    // The process has as many threads as it may; callers still do all their work themselves.
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    opened_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Loop::Work() {
  for (;;) {
    const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks) return;
    run(task);
  }
}

void ThreadPool::For(int64_t tasks, absl::FunctionRef<void(int64_t)> run) {
  if (tasks <= 1 || threads_.empty()) {
    for (int64_t task = 0; task < tasks; ++task) run(task);
    return;
  }
  Loop loop(tasks, run);
  {
    MutexLock lock(&mutex_);
    loops_.push_back(&loop);
    opened_.SignalAll();
  }
  loop.Work();
  MutexLock lock(&mutex_);
  const auto it = std::find(loops_.begin(), loops_.end(), &loop);
  if (it != loops_.end()) loops_.erase(it);
  while (loop.helpers > 0) left_.Wait(&mutex_);
}

void ThreadPool::HelpUntilStopped() {
  MutexLock lock(&mutex_);
  for (;;) {
    while (!stop_ && loops_.empty()) opened_.Wait(&mutex_);
    if (stop_) return;
    Loop* const loop = loops_.front();
    loops_.pop_front();
    if (loop->next.load(std::memory_order_relaxed) >= loop->tasks) continue;
    loops_.push_back(loop);  // The next idle thread looks at another loop first.
    ++loop->helpers;
    mutex_.Unlock();
    loop->Work();
    mutex_.Lock();
    --loop->helpers;
    left_.SignalAll();
  }
}

}  // namespace kvtier
