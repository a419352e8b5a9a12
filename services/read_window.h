// The next segments of a fetch, in the order of its plan. What lies in host memory is there at
// once; the rest is read on the pool ahead of its turn, two segments at a time: while one of them
// is checked and copied the disk reads the other one, and it reads while segments are sent. Private
// to the service.
//
//   ReadWindow window(environment, source, [this] { GoOn(); });
//   window.ReadAhead();
//   ... window.Take(next): send it, call ReadAhead again, let go of it, take the one after it
#ifndef KVTIER_SERVICES_READ_WINDOW_H_
#define KVTIER_SERVICES_READ_WINDOW_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "kvcache/segment_ref.h"
#include "services/call_environment.h"
#include "services/fetch_source.h"

namespace kvtier {

// Of one thread at a time, the one that has the turn: the caller's, or the pool's that runs
// `go_on`. Nothing here waits for a disk.
class ReadWindow {
 public:
  struct Item {
    FetchSource::Segment segment;
    SegmentRef bytes;
  };
  enum class Next { kReady, kLater, kEnd };

  // `environment` and `source` outlive it. `go_on` runs on the pool, at most once for each kLater
  // and each Stop that returned false, and has the turn.
  ReadWindow(CallEnvironment& environment, FetchSource& source, std::function<void()> go_on)
      : environment_(environment), source_(source), go_on_(std::move(go_on)) {}

  // Begins to read what comes next: one segment first, two when one that was read ahead has found
  // room. So the first one that comes from disk is read alone: with it the store decides what comes
  // back into memory (store/read_memory.h, store/band_fill.h).
  // REQUIRES: the source is open.
  void ReadAhead() ABSL_LOCKS_EXCLUDED(mutex_);

  // The next segment. REQUIRES: the caller has let go of the one before it, whose memory this one
  // may need.
  //   kReady  `item` is it, or why it cannot be read: codes of FetchSource::Read
  //   kLater  it is being read; go_on will be called, and calls Take again
  //   kEnd    there is none
  Next Take(absl::StatusOr<Item>& item) ABSL_LOCKS_EXCLUDED(mutex_);

  // Reads nothing more, and lets go of what has been read. True: no job reads. False: go_on will be
  // called when none does, and calls Stop again.
  bool Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether anything had to be read on the pool.
  bool has_read() const { return has_read_; }

 private:
  struct Read {
    FetchSource::Segment segment;
    bool is_reading = false;
    bool was_read = false;  // Or is being read, on the pool.
    bool is_alone = false;  // Nothing else of this fetch has memory: a refusal is final.
    std::optional<absl::StatusOr<SegmentRef>> bytes = std::nullopt;
  };

  void Start(Read& read) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(Read& read) ABSL_LOCKS_EXCLUDED(mutex_);  // On the pool.

  CallEnvironment& environment_;
  FetchSource& source_;
  const std::function<void()> go_on_;
  size_t ahead_max_ = 1;
  bool has_taken_read_ = false;
  bool has_read_ = false;

  Mutex mutex_;
  std::deque<Read> reads_ ABSL_GUARDED_BY(mutex_);  // Next first. Jobs refer to theirs.
  int jobs_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_awaited_ ABSL_GUARDED_BY(mutex_) = false;  // A job that ends calls go_on.
  bool is_stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_READ_WINDOW_H_
