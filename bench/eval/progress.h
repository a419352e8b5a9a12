// One line on standard error that says how far a command is: redrawn in place with the time that is
// left on a terminal, printed once per stage when piped.
//   progress.Start("prefill", documents); ... progress.Step(); ... progress.Finish();
#ifndef KVTIER_BENCH_EVAL_PROGRESS_H_
#define KVTIER_BENCH_EVAL_PROGRESS_H_

#include <chrono>
#include <cstddef>
#include <string>

#include "base/mutex.h"

namespace kvtier {

// Step is thread-safe; Start and Finish are for the thread that owns the stages.
class Progress {
 public:
  Progress();
  // Ends the stage before it. `total` counts the steps; 0: unknown.
  void Start(std::string stage, size_t total);
  void Step();
  // Prints how long the stage took. Nothing if none is open.
  void Finish();

 private:
  double SecondsSinceStart() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The line to draw; empty where nothing is drawn.
  std::string Line() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const bool terminal_;
  Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  std::string stage_ ABSL_GUARDED_BY(mutex_);
  size_t total_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  std::chrono::steady_clock::time_point started_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_BENCH_EVAL_PROGRESS_H_
