#include "tests/testing/fake_communicator.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// How often a waiter looks whether it was cancelled, aborted or is late (by the test's clock).
constexpr absl::Duration kLook = absl::Milliseconds(1);

}  // namespace

int FakeLinks::uses_after_failure() {
  MutexLock lock(&mutex_);
  return uses_after_failure_;
}

int FakeLinks::groups_made() {
  MutexLock lock(&mutex_);
  return groups_made_;
}

void FakeLinks::AwaitHanging() {
  MutexLock lock(&mutex_);
  while (hanging_ == 0) changed_.WaitWithTimeout(&mutex_, kLook);
}

class FakeCommunicator final : public Communicator {
 public:
  FakeCommunicator(FakeCommunicatorFactory& factory, std::shared_ptr<FakeLinks::Group> group,
                   int rank)
      : factory_(factory), links_(factory.links_), group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size; }

  absl::Status GroupStart() override {
    KVTIER_RETURN_IF_ERROR(Begin("start"));
    return absl::OkStatus();
  }
  absl::Status Send(const void* from, uint64_t bytes, int to_rank) override {
    KVTIER_RETURN_IF_ERROR(Begin("send"));
    AddSend(from, bytes, to_rank);
    return absl::OkStatus();
  }
  absl::Status Receive(void* to, uint64_t bytes, int from_rank) override {
    KVTIER_RETURN_IF_ERROR(Begin("receive"));
    AddReceive(to, bytes, from_rank);
    return absl::OkStatus();
  }
  absl::Status Broadcast(void* buffer, uint64_t bytes, int root) override {
    KVTIER_RETURN_IF_ERROR(Begin("broadcast"));
    if (root != rank_) {
      AddReceive(buffer, bytes, root);
      return absl::OkStatus();
    }
    for (int rank = 0; rank < group_->size; ++rank) {
      if (rank != root) AddSend(buffer, bytes, rank);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> GroupEnd(absl::Time /*deadline*/) override {
    KVTIER_RETURN_IF_ERROR(Begin("end"));
    ++last_group_;
    MutexLock lock(&links_.mutex_);
    for (Operation& operation : operations_) {
      if (operation.group != 0) continue;
      operation.group = last_group_;
      if (operation.sent != nullptr) {
        group_->queues[{rank_, operation.to_rank}].push_back(operation.sent);
      }
    }
    links_.changed_.SignalAll();
    return last_group_;
  }

  absl::Status Wait(uint64_t number, absl::Time deadline) override {
    bool is_hanging = false;
    absl::Status status = factory_.Step("wait", &is_hanging);
    MutexLock lock(&links_.mutex_);
    while (status.ok()) {
      status = error_;
      if (status.ok() && is_aborted_) status = absl::CancelledError("aborted");
      if (!status.ok()) break;
      if (!is_hanging) {
        while (!operations_.empty() && operations_.front().group <= number && status.ok()) {
          if (!Advance(operations_.front(), status)) break;
          operations_.pop_front();
        }
        if (!status.ok()) break;
        if (operations_.empty() || operations_.front().group > number) return absl::OkStatus();
      }
      if (links_.clock_.Now() >= deadline) {
        status = absl::DeadlineExceededError("the communicator is not done");
        break;
      }
      links_.changed_.WaitWithTimeout(&links_.mutex_, kLook);
    }
    error_ = status;
    return status;
  }

  absl::Status QueryError() override {
    MutexLock lock(&links_.mutex_);
    return error_;
  }

  void Abort() override {
    MutexLock lock(&links_.mutex_);
    is_aborted_ = true;
    links_.changed_.SignalAll();
  }

 private:
  struct Operation {
    uint64_t group = 0;  // 0: not ended yet.
    void* to = nullptr;  // Of a receive.
    uint64_t bytes = 0;
    int from_rank = 0;
    int to_rank = 0;
    std::shared_ptr<FakeLinks::Message> sent;  // Of a send.
  };

  absl::Status Begin(const char* name) {
    bool is_hanging = false;
    absl::Status status = factory_.Step(name, &is_hanging);
    MutexLock lock(&links_.mutex_);
    if (!error_.ok()) ++links_.uses_after_failure_;
    while (is_hanging && !is_aborted_) {
      links_.changed_.WaitWithTimeout(&links_.mutex_, kLook);
    }
    if (status.ok() && is_aborted_) status = absl::CancelledError("aborted");
    if (status.ok()) status = error_;
    error_ = status;
    return status;
  }

  void AddReceive(void* to, uint64_t bytes, int from_rank) {
    Operation& operation = operations_.emplace_back();
    operation.to = to;
    operation.bytes = bytes;
    operation.from_rank = from_rank;
  }

  void AddSend(const void* from, uint64_t bytes, int to_rank) {
    auto message = std::make_shared<FakeLinks::Message>();
    message->bytes.resize(bytes);
    std::memcpy(message->bytes.data(), from, bytes);
    if (factory_.corrupts_) message->bytes[bytes / 2] ^= std::byte{0x10};
    Operation& operation = operations_.emplace_back();
    operation.to_rank = to_rank;
    operation.sent = std::move(message);
  }

  // True when the operation is done.
  bool Advance(Operation& operation, absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(links_.mutex_) {
    if (operation.sent != nullptr) return operation.sent->is_taken;
    auto& queue = group_->queues[{operation.from_rank, rank_}];
    if (queue.empty()) return false;
    FakeLinks::Message& message = *queue.front();
    if (message.bytes.size() != operation.bytes) {
      status = absl::InternalError(absl::StrCat("rank ", operation.from_rank, " sent ",
                                                message.bytes.size(), " bytes where ",
                                                operation.bytes, " are to be received"));
      return false;
    }
    std::memcpy(operation.to, message.bytes.data(), message.bytes.size());
    message.is_taken = true;
    queue.pop_front();
    links_.changed_.SignalAll();
    return true;
  }

  FakeCommunicatorFactory& factory_;
  FakeLinks& links_;
  const std::shared_ptr<FakeLinks::Group> group_;
  const int rank_;
  uint64_t last_group_ = 0;
  std::deque<Operation> operations_;
  absl::Status error_;  // Guarded by the links' mutex, as is the next one.
  bool is_aborted_ = false;
};

void FakeCommunicatorFactory::FailAt(int step, Fault fault) {
  {
    MutexLock lock(&mutex_);
    taken_.clear();
  }
  fault_ = fault;
  fail_at_ = step;
  steps_ = 0;
}

std::string FakeCommunicatorFactory::steps_taken() {
  MutexLock lock(&mutex_);
  return taken_;
}

absl::Status FakeCommunicatorFactory::Step(const char* name, bool* is_hanging) {
  const int step = ++steps_;
  {
    MutexLock lock(&mutex_);
    absl::StrAppend(&taken_, taken_.empty() ? "" : " ", name);
  }
  const int fail_at = fail_at_.load();
  if (fail_at == 0 || step < fail_at) return absl::OkStatus();
  if (fault_ == Fault::kHang) {
    *is_hanging = step == fail_at;
    if (*is_hanging) {
      MutexLock lock(&links_.mutex_);
      ++links_.hanging_;
    }
    return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrCat("dead since step ", fail_at, " of its links"));
}

absl::StatusOr<std::string> FakeCommunicatorFactory::MakeUniqueId() {
  bool is_hanging = false;  // It talks to nobody, so it cannot hang.
  KVTIER_RETURN_IF_ERROR(Step("id", &is_hanging));
  MutexLock lock(&links_.mutex_);
  return absl::StrCat("fake link ", links_.next_id_++);
}

absl::StatusOr<std::unique_ptr<Communicator>> FakeCommunicatorFactory::Create(
    const Membership& membership, absl::Time deadline, const CancelToken& cancel) {
  bool is_hanging = false;
  KVTIER_RETURN_IF_ERROR(Step("create", &is_hanging));
  if (membership.rank < 0 || membership.rank >= membership.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", membership.rank, " of ", membership.size));
  }
  MutexLock lock(&links_.mutex_);
  std::shared_ptr<FakeLinks::Group>& entry = links_.groups_[membership.unique_id];
  if (entry == nullptr) {
    entry = std::make_shared<FakeLinks::Group>();
    entry->size = membership.size;
  }
  const std::shared_ptr<FakeLinks::Group> group = entry;
  if (!is_hanging) {
    if (group->size != membership.size || !group->ranks.insert(membership.rank).second) {
      return absl::InvalidArgumentError("the ranks do not agree about the group");
    }
    if (group->ranks.size() == static_cast<size_t>(group->size)) ++links_.groups_made_;
    links_.changed_.SignalAll();
  }
  while (is_hanging || group->ranks.size() < static_cast<size_t>(group->size)) {
    if (cancel.cancelled()) return absl::CancelledError("cancelled while the group was made");
    if (links_.clock_.Now() >= deadline) {
      return absl::DeadlineExceededError("not every rank came");
    }
    links_.changed_.WaitWithTimeout(&links_.mutex_, kLook);
  }
  return std::make_unique<FakeCommunicator>(*this, group, membership.rank);
}

}  // namespace kvtier
