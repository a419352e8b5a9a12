// What happened to the objects of a store, in order, kept for a while: whoever watches sees each
// change of its tenant's objects once, and may come back and go on where it was.
//
// Events have sequence numbers, from 1 on, one series for all tenants. The log keeps the last
// `events_max` of them; when it is full the tenant with the most events loses its oldest one, so
// that a busy tenant shortens its own replay and not another's. A watcher holds no events of its
// own, only its place in the log: one that is slower than its tenant's changes is cut (ABORTED)
// when an event that it has not seen goes.
//
// Invariants:
//   1. The events of a tenant that the log keeps are those after the last one that it dropped.
//   2. A watcher of `after` can be served exactly if no event of its tenant after `after` has been
//      dropped.
//
//   KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<EventWatcher> watcher, log.Watch(tenant, after));
//   KVTIER_ASSIGN_OR_RETURN(std::vector<StoreEvent> events, watcher->Next(64));
//   if (events.empty()) watcher->NotifyOnce([&] { ... schedule another look ... });
//
// Thread-safe. Its lock is taken after any lock of the caller's, and held for memory only.
#ifndef KVTIER_STORE_EVENT_LOG_H_
#define KVTIER_STORE_EVENT_LOG_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "kvcache/ids.h"
#include "store/object_stat.h"

namespace kvtier {

struct StoreEvent {
  // A new current upload of its key.
  struct Sealed {
    std::shared_ptr<const ObjectBrief> object;
  };
  // It has fewer bands than before: how many, and why.
  struct Lowered {
    enum class Reason { kDegraded, kRequested, kLost };
    uint32_t resident_bands = 0;
    Reason reason = Reason::kDegraded;
  };
  struct Removed {
    enum class Reason { kDeleted, kReplaced, kEvicted, kExpired, kLost };
    Reason reason = Reason::kDeleted;
  };
  using Change = std::variant<Sealed, Lowered, Removed>;

  uint64_t sequence = 0;
  absl::Time at;
  Key key;
  UploadId upload;
  Change change;
};

class EventLog;

// One watcher's place in the log. Used by one thread at a time; dies before the log.
class EventWatcher {
 public:
  ~EventWatcher();
  EventWatcher(const EventWatcher&) = delete;
  EventWatcher& operator=(const EventWatcher&) = delete;

  // The events after those that it has returned, oldest first, at most `count_max`; none if there
  // are none yet.
  //   ABORTED      an event was dropped before it was seen: watch again, from a snapshot
  //   UNAVAILABLE  the log is closed
  absl::StatusOr<std::vector<StoreEvent>> Next(size_t count_max);

  // Calls `wake` once, as soon as Next has something to say: now, or from the thread that appends.
  // `wake` runs under the log's lock and whatever locks the appender holds: it must do no more
  // than schedule. Never called after the watcher's destruction. Replaces an earlier `wake`.
  void NotifyOnce(std::function<void()> wake);

 private:
  friend class EventLog;
  EventWatcher(EventLog& log, TenantId tenant, uint64_t after)
      : log_(log), tenant_(std::move(tenant)), after_(after) {}

  EventLog& log_;
  const TenantId tenant_;
  uint64_t after_;  // Guarded by the log's lock, as is wake_.
  std::function<void()> wake_;
};

class EventLog {
 public:
  struct Options {
    size_t events_max = limits::kWatchReplayEventsMax;
    uint32_t watchers_max = limits::kWatchersMax;
    uint32_t watchers_per_tenant_max = limits::kWatchersPerTenantMax;
  };

  // `clock` must outlive the log.
  EventLog(const Options& options, Clock& clock) : options_(options), clock_(clock) {}
  ~EventLog();

  void Append(const TenantId& tenant, const Key& key, const UploadId& upload,
              StoreEvent::Change change) ABSL_LOCKS_EXCLUDED(mutex_);

  // Of the last event; 0: there was none.
  uint64_t last_sequence() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Watches the tenant's events after number `after`.
  //   OUT_OF_RANGE        some of them are not known any more, or `after` lies ahead: begin with a
  //                       snapshot of the state, and watch from its number
  //   RESOURCE_EXHAUSTED  too many watchers
  //   UNAVAILABLE         the log is closed
  absl::StatusOr<std::unique_ptr<EventWatcher>> Watch(const TenantId& tenant, uint64_t after)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends all watchers (UNAVAILABLE) and lets no new ones in.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  uint32_t watcher_count() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t watchers_cut() const ABSL_LOCKS_EXCLUDED(mutex_);  // Ended with ABORTED, since start.

 private:
  friend class EventWatcher;

  struct Stream {
    std::deque<StoreEvent> events;  // Ascending sequence numbers, no gap of its tenant's.
    uint64_t dropped_through = 0;   // Number of the last event of the tenant that was dropped.
  };

  uint64_t DroppedThrough(const TenantId& tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasNews(const EventWatcher& watcher) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake(EventWatcher& watcher) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  Clock& clock_;
  mutable Mutex mutex_;
  uint64_t last_sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<TenantId, Stream> streams_ ABSL_GUARDED_BY(mutex_);  // Each has an event, so: bounded.
  std::set<std::pair<size_t, TenantId>> by_size_ ABSL_GUARDED_BY(mutex_);
  size_t event_count_ ABSL_GUARDED_BY(mutex_) = 0;
  // Of tenants without a stream: no event after this was dropped.
  uint64_t forgotten_through_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<TenantId, std::set<EventWatcher*>> watchers_ ABSL_GUARDED_BY(mutex_);
  uint32_t watcher_count_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t watchers_cut_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_EVENT_LOG_H_
