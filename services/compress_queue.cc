#include "services/compress_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// How often a waiter looks whether its caller is still there: the bound on how long an abandoned
// computation runs on, not a rate at which anything is delivered.
constexpr absl::Duration kAliveInterval = absl::Milliseconds(200);

}  // namespace

struct CompressQueue::Job {
  Key key;
  uint64_t memory_bytes = 0;
  Compute compute;
  CancelToken cancel;
  // The rest is guarded by the queue's mutex.
  CondVar changed;  // New progress, or finished.
  uint32_t waiters = 0;
  bool running = false;
  uint64_t progress_count = 0;
  v1::CompressProgress progress;
  bool finished = false;
  absl::StatusOr<v1::CompressResult> result = absl::UnknownError("not finished");
};

CompressQueue::CompressQueue(Options options, Metrics& metrics, Clock& clock)
    : options_(options), metrics_(metrics), clock_(clock) {
  for (uint32_t i = 0; i < options_.pool_threads; ++i) {
    pool_.emplace_back([this] { PoolThread(); });
  }
}

CompressQueue::~CompressQueue() {
  Shutdown();
  for (std::thread& thread : pool_) thread.join();
}

void CompressQueue::Shutdown() {
  MutexLock lock(&mutex_);
  shutdown_ = true;
  for (auto& [key, job] : jobs_) job->cancel.Cancel();
  std::deque<std::shared_ptr<Job>> waiting;
  waiting.swap(waiting_);
  ExportLocked();
  for (const std::shared_ptr<Job>& job : waiting) {
    FinishLocked(job, absl::UnavailableError("the compressor is shutting down"));
  }
  work_.SignalAll();
}

void CompressQueue::ExportLocked() {
  metrics_.compress_queue_length.Set(static_cast<double>(waiting_.size()));
  metrics_.compress_memory_reserved_bytes.Set(static_cast<double>(reserved_bytes_));
}

bool CompressQueue::CanStartLocked() const {
  if (waiting_.empty()) return false;
  return options_.memory_bytes_max == 0 ||
         reserved_bytes_ + waiting_.front()->memory_bytes <= options_.memory_bytes_max;
}

void CompressQueue::FinishLocked(const std::shared_ptr<Job>& job,
                                 absl::StatusOr<v1::CompressResult> result) {
  // A cancelled job may have been replaced under its key by a newer one.
  if (auto it = jobs_.find(job->key); it != jobs_.end() && it->second == job) jobs_.erase(it);
  job->result = std::move(result);
  job->finished = true;
  job->changed.SignalAll();
}

void CompressQueue::LeaveLocked(const std::shared_ptr<Job>& job) {
  if (--job->waiters > 0 || job->finished) return;
  job->cancel.Cancel();
  metrics_.compress_cancelled.Increment();
  // Nobody may join a job that is ending: the next request of this key starts a fresh one.
  if (auto it = jobs_.find(job->key); it != jobs_.end() && it->second == job) jobs_.erase(it);
  if (job->running) return;
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), job));
  ExportLocked();
  job->finished = true;
  work_.SignalAll();  // The job behind it may be able to start.
}

void CompressQueue::PoolThread() {
  while (true) {
    std::shared_ptr<Job> job;
    {
      MutexLock lock(&mutex_);
      while (!shutdown_ && !CanStartLocked()) work_.Wait(&mutex_);
      if (shutdown_) return;
      job = waiting_.front();
      waiting_.pop_front();
      reserved_bytes_ += job->memory_bytes;
      ExportLocked();
      job->running = true;
    }
    const Progress publish = [this, &job](const v1::CompressProgress& progress) {
      MutexLock lock(&mutex_);
      job->progress = progress;
      ++job->progress_count;
      job->changed.SignalAll();
    };
    absl::StatusOr<v1::CompressResult> result = job->compute(publish, job->cancel);
    job->compute = nullptr;  // Frees what it captured before anybody else is started.
    MutexLock lock(&mutex_);
    reserved_bytes_ -= job->memory_bytes;
    ExportLocked();
    if (!result.ok() && shutdown_) {
      result = absl::UnavailableError("the compressor is shutting down");
    }
    FinishLocked(job, std::move(result));
    work_.SignalAll();
  }
}

absl::StatusOr<v1::CompressResult> CompressQueue::Run(const Key& key, uint64_t memory_bytes,
                                                      Compute compute, const Progress& on_progress,
                                                      const std::function<bool()>& alive) {
  std::shared_ptr<Job> job;
  uint64_t seen = 0;
  mutex_.Lock();
  if (shutdown_) {
    mutex_.Unlock();
    return absl::UnavailableError("the compressor is shutting down");
  }
  absl::Status refusal;
  if (auto it = jobs_.find(key); it != jobs_.end()) {
    job = it->second;
    if (job->waiters >= options_.waiters_per_key_max) {
      refusal = WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                   job->waiters, " requests wait for this key already, the limit")),
                               options_.retry_after);
    } else {
      metrics_.compress_shared.Increment();
    }
  } else if (options_.memory_bytes_max != 0 && memory_bytes > options_.memory_bytes_max) {
    refusal = absl::ResourceExhaustedError(
        absl::StrCat("compressing this context needs about ", memory_bytes,
                     " bytes, more than the memory budget of ", options_.memory_bytes_max));
  } else if (waiting_.size() >= options_.queue_max) {
    refusal = WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                 "the queue is full: ", options_.queue_max, " contexts wait")),
                             options_.retry_after);
  } else {
    job = std::make_shared<Job>();
    job->key = key;
    job->memory_bytes = memory_bytes;
    job->compute = std::move(compute);
    job->progress.set_stage(v1::COMPRESS_STAGE_QUEUED);
    job->progress.set_done(waiting_.size());
    job->progress.set_total(options_.queue_max);
    job->progress_count = 1;
    jobs_[key] = job;
    waiting_.push_back(job);
    ExportLocked();
    work_.SignalAll();
  }
  if (!refusal.ok()) {
    metrics_.compress_refused.Increment();
    mutex_.Unlock();
    return refusal;
  }
  ++job->waiters;

  // The lock is let go while foreign code (progress, alive) runs.
  while (!job->finished) {
    if (job->progress_count != seen) {
      seen = job->progress_count;
      const v1::CompressProgress progress = job->progress;
      mutex_.Unlock();
      on_progress(progress);
      mutex_.Lock();
      continue;
    }
    mutex_.Unlock();
    const bool still_wanted = alive();
    mutex_.Lock();
    if (job->finished) break;
    if (!still_wanted) {
      LeaveLocked(job);
      mutex_.Unlock();
      return absl::CancelledError("the caller went away");
    }
    if (job->progress_count != seen) continue;
    clock_.WaitWithDeadline(&mutex_, &job->changed, clock_.Now() + kAliveInterval);
  }
  --job->waiters;
  absl::StatusOr<v1::CompressResult> result = job->result;
  mutex_.Unlock();
  return result;
}

}  // namespace kvtier
