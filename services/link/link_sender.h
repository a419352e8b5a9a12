// The sending end of the link, without gRPC: groups of workers, their communicators, and the steps
// of a transfer (proto/kvtier/v1/link.proto). LinkService speaks for each rank through a Call.
//
//   KVTIER_ASSIGN_OR_RETURN(auto call, sender.Enter(join, deadline, {interrupt, is_cancelled}));
//   ... write call->plan(), call->mode() as the header; read `ready` ...
//   KVTIER_ASSIGN_OR_RETURN(LinkTurn turn, call->AwaitTurn());
//   ... write `go`; read `done` ...
//   return call->AwaitEnd();
//
// A call that is destroyed earlier has failed, and with it the transfer of all its ranks.
//
// What holds, whoever dies when:
//   1. A group runs one transfer at a time; the others wait for their turn.
//   2. Before its turn a transfer touches no communicator.
//   3. A communicator outlives a transfer only if every rank has said `done` and all has been sent;
//      otherwise it is aborted and destroyed, and the next turn of the group has a new epoch.
//   4. An object is pinned until nothing reads its device memory any more.
//   5. Every wait ends by its deadline, by the end of the transfer's turn, soon after its caller
//   has
//      gone, or with Stop, whichever comes first; so does the turn of ranks that never say `done`.
#ifndef KVTIER_SERVICES_LINK_LINK_SENDER_H_
#define KVTIER_SERVICES_LINK_LINK_SENDER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "compressor/device_tier.h"
#include "kvcache/communicator.h"
#include "kvcache/transport.h"
#include "services/link/link_counters.h"
#include "services/link/link_layers.h"

namespace kvtier {

// Names a worker and the communicator that it has; see LinkJoin.member_id.
using LinkMemberId = FixedBytes<struct LinkMemberTag, 16>;

// One rank's wish.
struct LinkWish {
  std::string group;  // Of fetch.tenant.
  uint32_t ranks = 1;
  uint32_t rank = 0;
  LinkMemberId member_id;
  FetchRequest fetch;
};

// What a rank needs to know when its transfer's turn has come.
struct LinkTurn {
  uint64_t epoch = 0;
  std::string unique_id;  // Empty: the communicator of this epoch is there already.
};

// The one who calls for a rank: what the sender asks and tells it. Both may be null.
struct LinkCaller {
  // Called at most once, while the call lives, when the transfer has failed for another's sake and
  // the call's thread may be reading. Must not block, nor call back.
  std::function<void()> interrupt;
  // Whether it has gone. Asked by the call's thread every limits::kLinkCancelPoll while it waits.
  std::function<bool()> is_cancelled;
};

// Thread-safe. Source, factory, counters and clock outlive it; it outlives its calls.
class LinkSender {
 private:
  struct Group;
  struct Transfer;

 public:
  struct Options {
    uint32_t groups_max = limits::kLinkGroupsMax;
    // Bound on one transfer from its turn on, whatever its callers' deadlines are.
    absl::Duration transfer_timeout = absl::Minutes(2);
  };
  LinkSender(const Options& options, DeviceObjectSource& source, CommunicatorFactory& factory,
             LinkCounters& counters, Clock& clock);
  ~LinkSender();

  // One rank of one transfer. Used by one thread.
  class Call {
   public:
    // Fails the transfer unless AwaitEnd has returned OK. May wait for the thread that sends.
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    const FetchPlan& plan() const;
    LinkMode mode() const;
    // This rank is ready. Blocks until all are and it is the transfer's turn.
    absl::StatusOr<LinkTurn> AwaitTurn();
    // This rank is done. Blocks until all are and everything has been sent.
    absl::Status AwaitEnd();
    // Why the transfer failed; OK if it has not.
    absl::Status status() const;
    // Ends the transfer for all ranks. The first reason is what status() says.
    void Fail(const absl::Status& why);

   private:
    friend class LinkSender;
    Call(LinkSender& sender, std::shared_ptr<Transfer> transfer, uint32_t rank)
        : sender_(sender), transfer_(std::move(transfer)), rank_(rank) {}

    LinkSender& sender_;
    const std::shared_ptr<Transfer> transfer_;
    const uint32_t rank_;
  };

  // Blocks until every rank of the group has asked for the same, heads apart.
  //   NOT_FOUND, ABORTED   from the source; fewer bands than the wish accepts
  //   OUT_OF_RANGE         layers or heads past the end
  //   INVALID_ARGUMENT     ranks, rank or name that cannot be
  //   FAILED_PRECONDITION  the group has transfers under way with another number of ranks
  //   RESOURCE_EXHAUSTED   too many groups have transfers under way
  //   DEADLINE_EXCEEDED    not all ranks came until then
  //   UNAVAILABLE          another rank's caller, or this one's, went away
  // or what Stop was given.
  absl::StatusOr<std::unique_ptr<Call>> Enter(const LinkWish& wish, absl::Time deadline,
                                              LinkCaller caller);

  // For good: every transfer under way fails with `why`, at whatever step it is, and no call enters
  // any more. Does not wait for the calls to end. REQUIRES: !why.ok()
  void Stop(const absl::Status& why);

 private:
  // What a rank's call does now.
  enum class Step { kAbsent, kGathering, kReading, kReady, kGone };
  struct Slot {
    Step step = Step::kAbsent;
    LinkMemberId member_id;
    FetchPlan plan;
    LinkCaller caller;
    bool is_ready = false;
    bool is_done = false;
  };
  using GroupName = std::pair<TenantId, std::string>;

  absl::StatusOr<Group*> FindGroupLocked(const LinkWish& wish, std::shared_ptr<Group>* evicted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(Transfer& transfer, const absl::Status& why, uint32_t but_rank)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next transfer of the group if it can.
  void StartNextLocked(Group& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends the turn once nobody works on it any more.
  void EndTurnLocked(Transfer& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Blocks until `is_met`, or the transfer has failed, or its time is up or the rank's caller has
  // gone, which fails it.
  template <typename Condition>
  absl::Status AwaitLocked(Transfer& transfer, uint32_t rank, absl::string_view what,
                           Condition is_met) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The thread of a transfer whose turn it is: sends, and sees that the turn ends in time.
  void Run(Transfer& transfer);
  absl::Status RunSteps(Transfer& transfer);

  const Options options_;
  DeviceObjectSource& source_;
  CommunicatorFactory& factory_;
  LinkCounters& counters_;
  Clock& clock_;
  Mutex mutex_;
  CondVar changed_;  // Anything of any transfer.
  std::map<GroupName, std::shared_ptr<Group>> groups_ ABSL_GUARDED_BY(mutex_);
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;  // Orders groups by their last use.
  std::set<std::shared_ptr<Transfer>> transfers_ ABSL_GUARDED_BY(mutex_);  // That have calls.
  absl::Status stopped_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_LINK_SENDER_H_
