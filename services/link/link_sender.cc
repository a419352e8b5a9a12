#include "services/link/link_sender.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/cancel_token.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {

// Every member is guarded by the sender's mutex, unless it says otherwise.
struct LinkSender::Group {
  uint32_t ranks = 0;
  uint64_t last_use = 0;
  uint64_t epoch = 0;
  std::unique_ptr<Communicator> communicator;  // Used by the thread of `running` without the lock.
  std::vector<LinkMemberId> members;           // [ranks] that the communicator was made with.
  std::vector<std::shared_ptr<Transfer>> gathering;
  std::deque<std::shared_ptr<Transfer>> waiting;  // Everybody ready.
  std::shared_ptr<Transfer> running;

  bool idle() const { return gathering.empty() && waiting.empty() && running == nullptr; }
};

struct LinkSender::Transfer {
  std::shared_ptr<Group> group;
  // Set once, before others see the transfer.
  std::shared_ptr<const DeviceObject> object;
  uint32_t band_count = 0;
  LayerRange layers;

  std::vector<Slot> slots;  // [ranks]
  uint32_t present = 0;     // Calls that live.
  absl::Time deadline = absl::InfiniteFuture();
  LinkMode mode = LinkMode::kSend;  // Known once all are there.
  bool complete = false;            // All ranks are there.
  bool has_turn = false;            // From here on a failure costs the communicator.
  LinkTurn turn;
  bool turn_known = false;
  bool sending = false;  // The thread runs; it alone may use the communicator.
  bool over = false;     // Everything sent and everybody done.
  absl::Status status;   // Why not.
  CancelToken cancel;
  std::thread thread;
  std::unique_ptr<Communicator> dead;

  bool AllReady() const {
    return std::all_of(slots.begin(), slots.end(), [](const Slot& slot) { return slot.is_ready; });
  }
  bool AllDone() const {
    return std::all_of(slots.begin(), slots.end(), [](const Slot& slot) { return slot.is_done; });
  }
};

LinkSender::LinkSender(const Options& options, DeviceObjectSource& source,
                       CommunicatorFactory& factory, LinkCounters& counters, Clock& clock)
    : options_(options), source_(source), factory_(factory), counters_(counters), clock_(clock) {}

LinkSender::~LinkSender() = default;

const FetchPlan& LinkSender::Call::plan() const { return transfer_->slots[rank_].plan; }
LinkMode LinkSender::Call::mode() const { return transfer_->mode; }

absl::StatusOr<LinkSender::Group*> LinkSender::FindGroupLocked(const LinkWish& wish,
                                                               std::shared_ptr<Group>* evicted) {
  const GroupName name(wish.fetch.tenant, wish.group);
  const auto found = groups_.find(name);
  if (found != groups_.end() && found->second->ranks != wish.ranks) {
    if (!found->second->idle()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "group ", wish.group, " has ", found->second->ranks, " ranks, not ", wish.ranks));
    }
    *evicted = std::move(found->second);  // Its workers were started anew, another number of them.
    groups_.erase(found);
  } else if (found != groups_.end()) {
    found->second->last_use = ++uses_;
    return found->second.get();
  } else if (groups_.size() >= options_.groups_max) {
    auto oldest = groups_.end();
    for (auto it = groups_.begin(); it != groups_.end(); ++it) {
      if (!it->second->idle()) continue;
      if (oldest == groups_.end() || it->second->last_use < oldest->second->last_use) oldest = it;
    }
    if (oldest == groups_.end()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("all ", groups_.size(), " groups of this sender have transfers under way"));
    }
    *evicted = std::move(oldest->second);
    groups_.erase(oldest);
  }
  auto group = std::make_shared<Group>();
  group->ranks = wish.ranks;
  group->last_use = ++uses_;
  return groups_.emplace(name, std::move(group)).first->second.get();
}

absl::StatusOr<std::unique_ptr<LinkSender::Call>> LinkSender::Enter(const LinkWish& wish,
                                                                    absl::Time deadline,
                                                                    LinkCaller caller) {
  if (wish.ranks == 0 || wish.ranks > limits::kLinkRanksMax || wish.rank >= wish.ranks) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", wish.rank, " of ", wish.ranks,
                                                   "; a group has 1 to ", limits::kLinkRanksMax));
  }
  if (wish.group.empty() || wish.group.size() > limits::kNameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a group's name has 1 to ", limits::kNameBytesMax, " bytes, not ", wish.group.size()));
  }
  const auto counted = [&](const absl::Status& status) {
    if (absl::IsNotFound(status) || absl::IsAborted(status)) ++counters_.send_misses;
    return status;
  };
  absl::StatusOr<std::shared_ptr<const DeviceObject>> object =
      source_.Pin(wish.fetch.tenant, wish.fetch.key, wish.fetch.upload_id);
  if (!object.ok()) return counted(object.status());
  absl::StatusOr<FetchPlan> plan =
      PlanFetch((*object)->manifest(), (*object)->resident_bands(), wish.fetch);
  if (!plan.ok()) return counted(plan.status());

  std::shared_ptr<Group> evicted;  // Before the lock: its communicator goes after it.
  std::unique_ptr<Call> call;      // Likewise: a call that fails here takes the lock itself.
  MutexLock lock(&mutex_);
  KVTIER_RETURN_IF_ERROR(stopped_);
  KVTIER_ASSIGN_OR_RETURN(Group* const group, FindGroupLocked(wish, &evicted));
  std::shared_ptr<Transfer> transfer;
  for (const std::shared_ptr<Transfer>& other : group->gathering) {
    if (other->slots[wish.rank].step == Step::kAbsent && other->band_count == plan->band_count &&
        other->layers == plan->layers && other->object->manifest()->key == plan->manifest->key &&
        other->object->manifest()->upload_id == plan->manifest->upload_id) {
      transfer = other;
      break;
    }
  }
  if (transfer == nullptr) {
    transfer = std::make_shared<Transfer>();
    transfer->group = groups_.at(GroupName(wish.fetch.tenant, wish.group));
    transfer->object = *std::move(object);
    transfer->band_count = plan->band_count;
    transfer->layers = plan->layers;
    transfer->slots.resize(wish.ranks);
    group->gathering.push_back(transfer);
    transfers_.insert(transfer);
  }
  Slot& slot = transfer->slots[wish.rank];
  slot.step = Step::kGathering;
  slot.member_id = wish.member_id;
  slot.plan = *std::move(plan);
  slot.caller = std::move(caller);
  ++transfer->present;
  transfer->deadline = std::min(transfer->deadline, deadline);
  call = std::unique_ptr<Call>(new Call(*this, transfer, wish.rank));
  transfer->complete = std::none_of(transfer->slots.begin(), transfer->slots.end(),
                                    [](const Slot& s) { return s.step == Step::kAbsent; });
  if (transfer->complete) {
    std::vector<FetchPlan> plans;
    for (const Slot& s : transfer->slots) plans.push_back(s.plan);
    transfer->mode = ChooseLinkMode(plans);
    std::erase(group->gathering, transfer);
    changed_.SignalAll();
  }
  KVTIER_RETURN_IF_ERROR(
      AwaitLocked(*transfer, wish.rank, "every rank to come", [&] { return transfer->complete; }));
  slot.step = Step::kReading;
  return call;
}

template <typename Condition>
absl::Status LinkSender::AwaitLocked(Transfer& transfer, uint32_t rank, absl::string_view what,
                                     Condition is_met) {
  const std::function<bool()>& is_cancelled = transfer.slots[rank].caller.is_cancelled;
  while (transfer.status.ok() && !is_met()) {
    const absl::Time now = clock_.Now();
    if (now >= transfer.deadline) {
      FailLocked(transfer, absl::DeadlineExceededError(absl::StrCat("waited for ", what)), rank);
    } else if (is_cancelled != nullptr && is_cancelled()) {
      FailLocked(transfer,
                 absl::UnavailableError(
                     absl::StrCat("rank ", rank, " went away while it waited for ", what)),
                 rank);
    } else {
      clock_.WaitWithDeadline(&mutex_, &changed_,
                              std::min(transfer.deadline, now + limits::kLinkCancelPoll));
    }
  }
  return transfer.status;
}

absl::StatusOr<LinkTurn> LinkSender::Call::AwaitTurn() {
  MutexLock lock(&sender_.mutex_);
  Transfer& transfer = *transfer_;
  Slot& slot = transfer.slots[rank_];
  if (!transfer.status.ok()) return transfer.status;
  slot.step = Step::kReady;
  slot.is_ready = true;
  if (transfer.AllReady()) {
    transfer.group->waiting.push_back(transfer_);
    sender_.StartNextLocked(*transfer.group);
  }
  KVTIER_RETURN_IF_ERROR(sender_.AwaitLocked(transfer, rank_, "the transfer's turn",
                                             [&] { return transfer.turn_known; }));
  slot.step = Step::kReading;
  return transfer.turn;
}

absl::Status LinkSender::Call::AwaitEnd() {
  MutexLock lock(&sender_.mutex_);
  Transfer& transfer = *transfer_;
  Slot& slot = transfer.slots[rank_];
  if (!transfer.status.ok()) return transfer.status;
  slot.step = Step::kReady;
  slot.is_done = true;
  sender_.EndTurnLocked(transfer);
  return sender_.AwaitLocked(transfer, rank_, "every rank to be done",
                             [&] { return transfer.over; });
}

absl::Status LinkSender::Call::status() const {
  MutexLock lock(&sender_.mutex_);
  return transfer_->status;
}

void LinkSender::Call::Fail(const absl::Status& why) {
  MutexLock lock(&sender_.mutex_);
  sender_.FailLocked(*transfer_, why, rank_);
}

LinkSender::Call::~Call() {
  std::thread thread;
  {
    MutexLock lock(&sender_.mutex_);
    Transfer& transfer = *transfer_;
    if (!transfer.over) {
      sender_.FailLocked(transfer,
                         absl::UnavailableError(absl::StrCat("rank ", rank_, " went away")), rank_);
    }
    Slot& slot = transfer.slots[rank_];
    slot.step = Step::kGone;
    slot.caller = LinkCaller();
    if (transfer.over) {
      ++sender_.counters_.sent;
      sender_.counters_.sent_bytes += slot.plan.payload_bytes();
    } else {
      ++sender_.counters_.send_failures;
    }
    if (--transfer.present == 0) {
      thread = std::move(transfer.thread);
      sender_.transfers_.erase(transfer_);
    }
  }
  if (thread.joinable()) thread.join();
}

void LinkSender::Stop(const absl::Status& why) {
  KVTIER_CHECK(!why.ok());
  MutexLock lock(&mutex_);
  if (stopped_.ok()) stopped_ = why;
  // Failing one may start the next of its group, which then fails in its turn here or has before.
  for (const std::shared_ptr<Transfer>& transfer : transfers_) {
    FailLocked(*transfer, why, static_cast<uint32_t>(transfer->slots.size()));
  }
}

void LinkSender::FailLocked(Transfer& transfer, const absl::Status& why, uint32_t but_rank) {
  if (transfer.over || !transfer.status.ok()) return;
  transfer.status = why;
  transfer.cancel.Cancel();
  Group& group = *transfer.group;
  if (transfer.has_turn && transfer.sending && group.communicator != nullptr) {
    group.communicator->Abort();  // Memory only: the thread that sends notices.
  }
  for (uint32_t rank = 0; rank < transfer.slots.size(); ++rank) {
    Slot& slot = transfer.slots[rank];
    if (rank != but_rank && slot.step == Step::kReading && slot.caller.interrupt != nullptr) {
      slot.caller.interrupt();
    }
  }
  const auto is_it = [&](const std::shared_ptr<Transfer>& other) {
    return other.get() == &transfer;
  };
  std::erase_if(group.gathering, is_it);
  std::erase_if(group.waiting, is_it);
  EndTurnLocked(transfer);
  changed_.SignalAll();
}

void LinkSender::StartNextLocked(Group& group) {
  if (group.running != nullptr || group.waiting.empty()) return;
  group.running = std::move(group.waiting.front());
  group.waiting.pop_front();
  Transfer& transfer = *group.running;
  transfer.deadline = std::min(transfer.deadline, clock_.Now() + options_.transfer_timeout);
  transfer.has_turn = true;
  transfer.sending = true;
  // Joined by the last call of the transfer, none of which has gone: all are ready.
  transfer.thread = std::thread([this, &transfer] { Run(transfer); });
}

void LinkSender::EndTurnLocked(Transfer& transfer) {
  Group& group = *transfer.group;
  if (group.running.get() != &transfer || transfer.sending) return;
  if (transfer.status.ok()) {
    if (!transfer.AllDone()) return;
    transfer.over = true;
    changed_.SignalAll();
  } else if (group.communicator != nullptr) {
    // Goes with the transfer, when its last call does: destroying it is a device call.
    transfer.dead = std::move(group.communicator);
    ++counters_.communicators_dropped;
  }
  group.running.reset();
  StartNextLocked(group);
}

void LinkSender::Run(Transfer& transfer) {
  const absl::Status status = RunSteps(transfer);
  // Kept until the lock is gone: the group may be forgotten with its last transfer.
  const std::shared_ptr<Group> group = transfer.group;
  MutexLock lock(&mutex_);
  transfer.sending = false;
  const auto nobody = static_cast<uint32_t>(transfer.slots.size());
  if (!status.ok() && transfer.status.ok()) {
    FailLocked(transfer, status, nobody);
    return;
  }
  EndTurnLocked(transfer);
  // Ranks that are read from do not look at the time: a silent one would keep turn, pin and queue.
  while (transfer.status.ok() && !transfer.over) {
    const bool late = clock_.WaitWithDeadline(&mutex_, &changed_, transfer.deadline);
    if (!late || !transfer.status.ok() || transfer.over) continue;
    const auto silent = std::find_if(transfer.slots.begin(), transfer.slots.end(),
                                     [](const Slot& slot) { return !slot.is_done; });
    FailLocked(transfer,
               absl::DeadlineExceededError(
                   absl::StrCat("rank ", silent - transfer.slots.begin(),
                                " had not said `done` when the transfer's time was up")),
               nobody);
  }
}

absl::Status LinkSender::RunSteps(Transfer& transfer) {
  Group& group = *transfer.group;
  std::vector<LinkMemberId> members;
  std::vector<FetchPlan> plans;
  std::unique_ptr<Communicator> old;
  absl::Time deadline;
  bool reuse = false;
  {
    MutexLock lock(&mutex_);
    for (const Slot& slot : transfer.slots) {
      members.push_back(slot.member_id);
      plans.push_back(slot.plan);
    }
    deadline = transfer.deadline;
    reuse = group.communicator != nullptr && group.members == members &&
            group.communicator->QueryError().ok();
    if (!reuse) {
      if (group.communicator != nullptr) ++counters_.communicators_dropped;
      old = std::move(group.communicator);
    }
  }
  std::string unique_id;
  if (!reuse) {
    old.reset();  // A device call, so without the lock.
    KVTIER_ASSIGN_OR_RETURN(unique_id, factory_.MakeUniqueId());
  }
  {
    MutexLock lock(&mutex_);
    KVTIER_RETURN_IF_ERROR(transfer.status);
    if (!reuse) ++group.epoch;
    transfer.turn = LinkTurn{.epoch = group.epoch, .unique_id = unique_id};
    transfer.turn_known = true;
    changed_.SignalAll();
  }
  if (!reuse) {
    KVTIER_ASSIGN_OR_RETURN(
        std::unique_ptr<Communicator> made,
        factory_.Create(
            {.unique_id = unique_id, .rank = 0, .size = static_cast<int>(group.ranks) + 1},
            deadline, transfer.cancel));
    ++counters_.communicators;
    MutexLock lock(&mutex_);
    group.communicator = std::move(made);
    group.members = members;
    KVTIER_RETURN_IF_ERROR(transfer.status);  // It failed too early to abort this communicator.
  }
  // Nobody else replaces it: this transfer has the turn until this thread says that it is done.
  return SendLayers(*group.communicator, *transfer.object, plans, transfer.mode, deadline);
}

}  // namespace kvtier
