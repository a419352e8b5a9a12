#include "store/event_log.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace kvtier {
namespace {

// The first event with a number above `after`.
std::deque<StoreEvent>::const_iterator FirstAfter(const std::deque<StoreEvent>& events,
                                                  uint64_t after) {
  return std::ranges::upper_bound(events, after, {}, &StoreEvent::sequence);
}

absl::Status ClosedError() { return absl::UnavailableError("the store is stopping"); }

}  // namespace

EventLog::~EventLog() {
  MutexLock lock(&mutex_);
  KVTIER_CHECK_EQ(watcher_count_, 0u) << "a watcher outlives its event log";
}

void EventLog::Append(const TenantId& tenant, const Key& key, const UploadId& upload,
                      StoreEvent::Change change) {
  MutexLock lock(&mutex_);
  const auto [at, is_new] = streams_.try_emplace(tenant);
  Stream& stream = at->second;
  if (is_new) {
    stream.dropped_through = forgotten_through_;
  } else {
    by_size_.erase({stream.events.size(), tenant});
  }
  stream.events.push_back({++last_sequence_, clock_.Now(), key, upload, std::move(change)});
  by_size_.insert({stream.events.size(), tenant});
  if (++event_count_ > options_.events_max) DropOldest();

  const auto watching = watchers_.find(tenant);
  if (watching == watchers_.end()) return;
  for (EventWatcher* watcher : watching->second) Wake(*watcher);
}

// Of the tenant that has the most.
void EventLog::DropOldest() {
  const auto largest = std::prev(by_size_.end());
  const TenantId tenant = largest->second;
  by_size_.erase(largest);
  const auto at = streams_.find(tenant);
  Stream& stream = at->second;
  stream.dropped_through = stream.events.front().sequence;
  stream.events.pop_front();
  --event_count_;
  if (stream.events.empty()) {
    forgotten_through_ = std::max(forgotten_through_, stream.dropped_through);
    streams_.erase(at);
  } else {
    by_size_.insert({stream.events.size(), tenant});
  }
}

uint64_t EventLog::DroppedThrough(const TenantId& tenant) const {
  const auto at = streams_.find(tenant);
  return at == streams_.end() ? forgotten_through_ : at->second.dropped_through;
}

uint64_t EventLog::last_sequence() const {
  MutexLock lock(&mutex_);
  return last_sequence_;
}

uint32_t EventLog::watcher_count() const {
  MutexLock lock(&mutex_);
  return watcher_count_;
}

uint64_t EventLog::watchers_cut() const {
  MutexLock lock(&mutex_);
  return watchers_cut_;
}

absl::StatusOr<std::unique_ptr<EventWatcher>> EventLog::Watch(const TenantId& tenant,
                                                              uint64_t after) {
  MutexLock lock(&mutex_);
  if (is_closed_) return ClosedError();
  if (watcher_count_ >= options_.watchers_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        watcher_count_, " watchers, the limit (kWatchersMax) is ", options_.watchers_max));
  }
  const auto own = watchers_.find(tenant);
  const size_t own_count = own == watchers_.end() ? 0 : own->second.size();
  if (own_count >= options_.watchers_per_tenant_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(own_count, " watchers of tenant ", tenant.name(),
                     ", the limit (kWatchersPerTenantMax) is ", options_.watchers_per_tenant_max));
  }
  const uint64_t dropped = DroppedThrough(tenant);
  if (after < dropped || after > last_sequence_) {
    return absl::OutOfRangeError(absl::StrCat("events from number ", after + 1,
                                              " on are asked for; known are those of (", dropped,
                                              ", ", last_sequence_, "]"));
  }
  std::unique_ptr<EventWatcher> watcher(new EventWatcher(*this, tenant, after));
  watchers_[tenant].insert(watcher.get());
  ++watcher_count_;
  return watcher;
}

void EventLog::Close() {
  MutexLock lock(&mutex_);
  is_closed_ = true;
  for (const auto& [tenant, watchers] : watchers_) {
    for (EventWatcher* watcher : watchers) Wake(*watcher);
  }
}

bool EventLog::HasNews(const EventWatcher& watcher) const {
  if (is_closed_ || DroppedThrough(watcher.tenant_) > watcher.after_) return true;
  const auto at = streams_.find(watcher.tenant_);
  return at != streams_.end() && at->second.events.back().sequence > watcher.after_;
}

void EventLog::Wake(EventWatcher& watcher) {
  if (watcher.wake_ == nullptr) return;
  const std::function<void()> wake = std::exchange(watcher.wake_, nullptr);
  wake();
}

// --- EventWatcher --------------------------------------------------------------------------------

EventWatcher::~EventWatcher() {
  MutexLock lock(&log_.mutex_);
  const auto own = log_.watchers_.find(tenant_);
  own->second.erase(this);
  if (own->second.empty()) log_.watchers_.erase(own);
  --log_.watcher_count_;
}

absl::StatusOr<std::vector<StoreEvent>> EventWatcher::Next(size_t count_max) {
  MutexLock lock(&log_.mutex_);
  if (log_.is_closed_) return ClosedError();
  if (const uint64_t dropped = log_.DroppedThrough(tenant_); dropped > after_) {
    ++log_.watchers_cut_;
    return absl::AbortedError(absl::StrCat("the watcher fell behind: it has seen event ", after_,
                                           ", and those up to ", dropped,
                                           " are not kept any more; watch again"));
  }
  std::vector<StoreEvent> events;
  const auto at = log_.streams_.find(tenant_);
  if (at == log_.streams_.end()) return events;
  auto next = FirstAfter(at->second.events, after_);
  for (; next != at->second.events.end() && events.size() < count_max; ++next) {
    events.push_back(*next);
  }
  if (!events.empty()) after_ = events.back().sequence;
  return events;
}

void EventWatcher::NotifyOnce(std::function<void()> wake) {
  MutexLock lock(&log_.mutex_);
  wake_ = std::move(wake);
  if (log_.HasNews(*this)) log_.Wake(*this);
}

}  // namespace kvtier
