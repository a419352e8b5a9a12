#include "services/watch_call.h"

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// Events taken from the log at once; they wait here while they are sent one by one.
constexpr size_t kEventsAtOnce = 64;

// One Watch. At any time it is at work (a write or a pool job is under way) or it waits for news;
// only who is at work touches the members, and only under mutex_ it changes from the one to the
// other. Deletes itself.
class WatchCall final : public grpc::ServerWriteReactor<v1::WatchResponse> {
 public:
  WatchCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
            const v1::WatchRequest& request)
      : environment_(environment), start_(environment.clock().Now()) {
    absl::StatusOr<CallSlots::Slot> slot = environment_.slots().Admit(context);
    if (!slot.ok()) {
      End(slot.status());
      return;
    }
    slot_ = *std::move(slot);
    if (request.incarnation() == environment_.store().incarnation()) {
      after_ = request.after_sequence();
    }
    environment_.Schedule([this] { Open(); });
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      environment_.Schedule([this] { End(absl::CancelledError("the watcher is gone")); });
    } else if (!events_.empty()) {
      SendEvent();
    } else {
      ScheduleWork();
    }
  }

  void OnCancel() override { WorkIfWaiting(is_cancelled_); }

  void OnDone() override { delete this; }

 private:
  void Open() {
    absl::StatusOr<std::unique_ptr<ObjectWatch>> watch =
        environment_.store().Watch(slot_.tenant(), after_);
    if (!watch.ok()) {
      absl::Status status = watch.status();
      if (absl::IsResourceExhausted(status)) {
        status = WithRetryAfter(std::move(status), kBusyRetryDelay);
      }
      End(status);
      return;
    }
    watch_ = *std::move(watch);
    Continue();
  }

  // On the pool, at work: sends what there is, or waits.
  void Continue() {
    if (std::optional<ObjectWatch::Part> part = watch_->NextPart(limits::kListPageMax)) {
      response_.Clear();
      v1::WatchSnapshot& snapshot = *response_.mutable_snapshot();
      for (const ObjectStat& stat : part->objects) *snapshot.add_objects() = SummaryToProto(stat);
      snapshot.set_last(part->is_last);
      snapshot.set_sequence(watch_->snapshot_sequence());
      snapshot.set_incarnation(environment_.store().incarnation());
      StartWrite(&response_);
      return;
    }
    absl::StatusOr<std::vector<StoreEvent>> events = watch_->events().Next(kEventsAtOnce);
    if (!events.ok()) {
      End(events.status());
      return;
    }
    if (!events->empty()) {
      for (StoreEvent& event : *events) events_.push_back(std::move(event));
      SendEvent();
      return;
    }
    // Still at work: if it wakes us at once, that is only noted.
    watch_->events().NotifyOnce([this] { WorkIfWaiting(has_news_); });
    bool has_work = false;
    {
      MutexLock lock(&mutex_);
      has_work = std::exchange(has_news_, false) || is_cancelled_;
      is_waiting_ = !has_work;
    }
    if (has_work) ScheduleWork();  // Otherwise another thread may be at work already, or done.
  }

  // Notes why; if nobody is at work, goes to work. `why` is one of the flags below.
  void WorkIfWaiting(bool& why) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      MutexLock lock(&mutex_);
      why = true;
      if (!std::exchange(is_waiting_, false)) return;
      has_news_ = false;
    }
    ScheduleWork();
  }

  void ScheduleWork() {
    environment_.Schedule([this] {
      bool is_cancelled = false;
      {
        MutexLock lock(&mutex_);
        is_cancelled = is_cancelled_;
      }
      if (is_cancelled) {
        End(absl::CancelledError("the watcher is gone"));
      } else {
        Continue();
      }
    });
  }

  void SendEvent() {
    response_.Clear();
    *response_.mutable_event() = EventToProto(events_.front(), environment_.store().incarnation());
    events_.pop_front();
    StartWrite(&response_);
  }

  // Counts before the caller hears of the end.
  void End(const absl::Status& status) {
    watch_.reset();  // From here on nobody wakes us.
    environment_.Count("Watch", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const absl::Time start_;
  CallSlots::Slot slot_;
  std::optional<uint64_t> after_;
  std::unique_ptr<ObjectWatch> watch_;
  std::deque<StoreEvent> events_;  // Taken, not yet sent.
  v1::WatchResponse response_;     // The one being written.

  Mutex mutex_;
  bool is_waiting_ ABSL_GUARDED_BY(mutex_) = false;
  // Guarded by it too; passed on by reference, which the analysis does not follow.
  bool is_cancelled_ = false;
  bool has_news_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::WatchResponse>* StartWatchCall(CallEnvironment& environment,
                                                            const grpc::ServerContextBase& context,
                                                            const v1::WatchRequest& request) {
  return new WatchCall(environment, context, request);
}

}  // namespace kvtier
