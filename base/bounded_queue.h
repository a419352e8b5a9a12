// A first-in first-out queue with a fixed capacity, between threads. A full queue pushes back
// (TryPush says no, Push waits with a deadline); closing it lets consumers drain what is left and
// then tells them. Thread-safe: any method from any thread; any number of producers and consumers.
//
//   BoundedQueue<Job> queue(limits::kCompressQueueMax, Clock::Real());
//   if (!queue.TryPush(std::move(job))) return absl::ResourceExhaustedError("queue is full");
//   ...
//   while (absl::StatusOr<Job> job = queue.Pop(absl::InfiniteFuture()); job.ok()) Run(*job);
#ifndef KVTIER_BASE_BOUNDED_QUEUE_H_
#define KVTIER_BASE_BOUNDED_QUEUE_H_

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"

namespace kvtier {

template <typename T>
class BoundedQueue {
 public:
  // REQUIRES: capacity > 0; `clock` outlives the queue.
  BoundedQueue(size_t capacity, Clock& clock) : capacity_(capacity), clock_(clock) {
    KVTIER_CHECK_GT(capacity, 0u);
  }
  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // Appends `value`; false if the queue is full or closed, and then `value` is untouched.
  [[nodiscard]] bool TryPush(T&& value) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (closed_ || items_.size() == capacity_) return false;
    Append(std::move(value));
    return true;
  }

  // Appends `value`, waiting for room. Unless OK, `value` is untouched.
  //   DEADLINE_EXCEEDED  no room until `deadline`
  //   CANCELLED          closed, before the call or during it
  absl::Status Push(T&& value, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    bool expired = false;
    while (!closed_ && items_.size() == capacity_) {
      if (expired) return absl::DeadlineExceededError("");
      expired = clock_.WaitWithDeadline(&mutex_, &not_full_, deadline);
    }
    if (closed_) return absl::CancelledError("queue is closed");
    Append(std::move(value));
    return absl::OkStatus();
  }

  // Takes the oldest item, waiting for one.
  //   DEADLINE_EXCEEDED  nothing came until `deadline`
  //   CANCELLED          closed and empty: there will be no more
  absl::StatusOr<T> Pop(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    bool expired = false;
    while (!closed_ && items_.empty()) {
      if (expired) return absl::DeadlineExceededError("");
      expired = clock_.WaitWithDeadline(&mutex_, &not_empty_, deadline);
    }
    if (items_.empty()) return absl::CancelledError("queue is closed");
    return TakeFront();
  }

  // Takes the oldest item if there is one.
  std::optional<T> TryPop() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (items_.empty()) return std::nullopt;
    return TakeFront();
  }

  // Refuses further items and wakes everybody who waits; what is inside can still be taken.
  // Closing twice is fine.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    closed_ = true;
    not_full_.SignalAll();
    not_empty_.SignalAll();
  }

  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    return items_.size();
  }
  bool closed() const ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    return closed_;
  }
  size_t capacity() const { return capacity_; }

 private:
  void Append(T&& value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    items_.push_back(std::move(value));
    not_empty_.Signal();
  }

  T TakeFront() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    T value = std::move(items_.front());
    items_.pop_front();
    not_full_.Signal();
    return value;
  }

  const size_t capacity_;
  Clock& clock_;
  mutable Mutex mutex_;
  CondVar not_full_;
  CondVar not_empty_;
  std::deque<T> items_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvtier

#endif  // KVTIER_BASE_BOUNDED_QUEUE_H_
