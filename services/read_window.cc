#include "services/read_window.h"

#include <vector>

#include "absl/status/status.h"

namespace kvtier {

void ReadWindow::ReadAhead() {
  for (;;) {
    {
      MutexLock lock(&mutex_);
      if (reads_.size() >= ahead_max_) return;
    }
    const std::optional<FetchSource::Segment> segment = source_.Next();
    if (!segment.has_value()) return;
    std::optional<SegmentRef> bytes = source_.ReadFromMemory(*segment);
    MutexLock lock(&mutex_);
    Read& read = reads_.emplace_back(Read{.segment = *segment});
    if (bytes.has_value()) {
      read.bytes = *std::move(bytes);
    } else {
      Start(read);
    }
  }
}

void ReadWindow::Start(Read& read) {
  read.is_reading = true;
  read.was_read = true;
  ++jobs_;
  has_read_ = true;
  environment_.Schedule([this, &read] { Run(read); });
}

void ReadWindow::Run(Read& read) {
  bool is_stopped = false;
  {
    MutexLock lock(&mutex_);
    is_stopped = is_stopped_;
  }
  absl::StatusOr<SegmentRef> bytes = absl::CancelledError("nobody waits for it");
  if (!is_stopped) bytes = source_.Read(read.segment);
  {
    MutexLock lock(&mutex_);
    read.bytes = std::move(bytes);
    read.is_reading = false;
    --jobs_;
    if (!is_awaited_ || (is_stopped_ && jobs_ > 0)) return;
    is_awaited_ = false;
  }
  go_on_();
}

ReadWindow::Next ReadWindow::Take(absl::StatusOr<Item>& item) {
  {
    std::vector<SegmentRef> let_go;  // After the lock, and before the read that needs their memory.
    MutexLock lock(&mutex_);
    if (reads_.empty()) return Next::kEnd;
    Read& read = reads_.front();
    if (!read.is_reading && read.bytes.has_value() &&
        (read.is_alone || !absl::IsResourceExhausted(read.bytes->status()))) {
      if (read.bytes->ok()) {
        item = Item{read.segment, **std::move(read.bytes)};
      } else {
        item = read.bytes->status();
      }
      // It was read while another one had memory: there is room for two.
      if (read.was_read) {
        if (has_taken_read_ && !read.is_alone) ahead_max_ = CallEnvironment::kJobsMax;
        has_taken_read_ = true;
      }
      reads_.pop_front();
      return Next::kReady;
    }
    if (jobs_ > 0) {
      is_awaited_ = true;
      return Next::kLater;
    }
    // There was no room for it beside others. Now it has what there is. Nobody else is here: no job
    // runs, and the turn is the caller's.
    for (Read& other : reads_) {
      if (other.bytes.has_value() && other.bytes->ok()) let_go.push_back(**std::move(other.bytes));
      other.bytes.reset();
    }
  }
  MutexLock lock(&mutex_);
  ahead_max_ = 1;
  is_awaited_ = true;
  reads_.front().is_alone = true;
  Start(reads_.front());
  return Next::kLater;
}

bool ReadWindow::Stop() {
  std::deque<Read> let_go;  // After the lock.
  MutexLock lock(&mutex_);
  is_stopped_ = true;
  is_awaited_ = jobs_ > 0;
  if (is_awaited_) return false;
  let_go.swap(reads_);
  return true;
}

}  // namespace kvtier
