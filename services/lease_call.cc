#include "services/lease_call.h"

#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "services/drain_signal.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "store/lease_table.h"

namespace kvtier {
namespace {

// One Lease stream. Letting go of a lease may wait for the disk: it happens on the pool. Deletes
// itself when the call is over.
//
// It is either our turn (a write or a pool job is under way, one of them) or the client's (we
// read). Only whoever has the turn touches the members that are not guarded. While we read, the
// message that comes takes the turn, or a drain does; then a message that comes nevertheless is not
// heard.
class LeaseCall final : public grpc::ServerBidiReactor<v1::LeaseRequest, v1::LeaseResponse> {
 public:
  LeaseCall(CallEnvironment& environment, const grpc::ServerContextBase& context)
      : environment_(environment), start_(environment.clock().Now()) {
    absl::StatusOr<CallSlots::Slot> slot = environment_.lease_slots().Admit(context);
    absl::Status status = slot.status();
    if (status.ok()) {
      slot_ = *std::move(slot);
      status = Open();
    }
    if (status.ok()) {
      Await();
    } else {
      End(status);
    }
  }

  void OnReadDone(bool ok) override {
    {
      MutexLock lock(&mutex_);
      if (turn_ == Turn::kOurs) return;  // The call is being ended.
      if (turn_ == Turn::kStartingToRead) {
        turn_ = Turn::kHasRead;
        has_message_ = ok;
        return;
      }
      turn_ = Turn::kOurs;
    }
    UseMessage(ok);
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Await();
    } else {
      environment_.Schedule([this] { End(absl::CancelledError("the holder is gone")); });
    }
  }

  void OnDone() override { delete this; }

 private:
  enum class Turn {
    kOurs,
    kStartingToRead,  // StartRead has not returned: the call must not be finished yet.
    kHasRead,         // As before, but the message is here.
    kClients,
  };

  absl::Status Open() {
    if (environment_.options().leases == nullptr) {
      return absl::UnimplementedError("this store gives no leases");
    }
    if (DrainSignal* const drain = environment_.options().drain) {
      drain_listener_ = drain->Listen([this] { OnDrain(); });
      if (drain_listener_ == nullptr) return Draining();
    }
    return absl::OkStatus();
  }

  static absl::Status Draining() { return absl::UnavailableError("the store stops"); }

  // Waits for the client's next message, unless the server stops. REQUIRES: our turn.
  void Await() {
    {
      MutexLock lock(&mutex_);
      turn_ = Turn::kStartingToRead;
    }
    StartRead(&request_);
    bool has_read = false;
    {
      MutexLock lock(&mutex_);
      has_read = turn_ == Turn::kHasRead;
      turn_ = has_read || is_draining_ ? Turn::kOurs : Turn::kClients;
      if (turn_ == Turn::kClients) return;
    }
    if (has_read) {
      UseMessage(has_message_);
    } else {
      environment_.Schedule([this] { End(Draining()); });
    }
  }

  void OnDrain() {
    {
      MutexLock lock(&mutex_);
      is_draining_ = true;
      if (turn_ != Turn::kClients) return;  // Await sees it.
      turn_ = Turn::kOurs;
    }
    environment_.Schedule([this] { End(Draining()); });
  }

  void UseMessage(bool ok) {
    if (ok) {
      environment_.Schedule([this] { Handle(); });
    } else {  // The client has finished, or is gone.
      environment_.Schedule([this] { End(absl::OkStatus()); });
    }
  }

  void Handle() {
    response_.Clear();
    switch (request_.message_case()) {
      case v1::LeaseRequest::kAcquire: {
        const absl::Status acquired = Acquire(request_.acquire(), *response_.mutable_granted());
        if (!acquired.ok()) response_.set_refused(RpcStatusBytes(acquired));
        break;
      }
      case v1::LeaseRequest::kRelease: {
        const auto found = leases_.find(request_.release().id());
        if (found == leases_.end() || found->second->id().epoch != request_.release().epoch()) {
          End(absl::InvalidArgumentError(
              absl::StrCat("lease ", request_.release().id(), " is not one of this stream's")));
          return;
        }
        leases_.erase(found);
        *response_.mutable_released() = request_.release();
        break;
      }
      case v1::LeaseRequest::MESSAGE_NOT_SET:
        End(absl::InvalidArgumentError("a message must acquire or release"));
        return;
    }
    StartWrite(&response_);
  }

  absl::Status Acquire(const v1::LeaseAcquire& acquire, v1::LeaseGranted& granted) {
    v1::FetchRequest message;
    *message.mutable_name() = acquire.name();
    *message.mutable_extent() = acquire.extent();
    KVTIER_ASSIGN_OR_RETURN(const FetchRequest request,
                            FetchRequestFromProto(slot_.tenant(), message));
    absl::StatusOr<std::unique_ptr<kvtier::Lease>> lease =
        environment_.options().leases->Acquire(request, BandPlacement::kAny);
    KVTIER_RETURN_IF_ERROR(WithRetryIfFull(lease.status()));
    FillLeaseGranted(**lease, granted);
    const uint64_t id = (*lease)->id().id;
    leases_.emplace(id, *std::move(lease));
    return absl::OkStatus();
  }

  // On the pool, or before anything was acquired.
  void End(const absl::Status& status) {
    drain_listener_.reset();
    leases_.clear();
    environment_.Count("Lease", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const absl::Time start_;
  CallSlots::Slot slot_;
  std::unique_ptr<DrainSignal::Listener> drain_listener_;
  std::map<uint64_t, std::unique_ptr<kvtier::Lease>> leases_;  // By id.
  v1::LeaseRequest request_;
  v1::LeaseResponse response_;
  bool has_message_ = false;  // Of kHasRead.

  Mutex mutex_;
  Turn turn_ ABSL_GUARDED_BY(mutex_) = Turn::kOurs;
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerBidiReactor<v1::LeaseRequest, v1::LeaseResponse>* StartLeaseCall(
    CallEnvironment& environment, const grpc::ServerContextBase& context) {
  return new LeaseCall(environment, context);
}

}  // namespace kvtier
