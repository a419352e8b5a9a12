#include "services/link/communicator_cache.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/ids.h"

namespace kvtier {
namespace {

LinkMemberId MakeMemberId() {
  const UploadId random = MakeUploadId();
  std::array<std::byte, LinkMemberId::kSize> bytes;
  std::ranges::copy(random.bytes(), bytes.begin());
  return LinkMemberId(bytes);
}

}  // namespace

CommunicatorCache::CommunicatorCache(CommunicatorFactory& factory, uint32_t ranks, uint32_t rank,
                                     LinkCounters& counters, Clock& clock)
    : factory_(factory),
      ranks_(ranks),
      rank_(rank),
      counters_(counters),
      clock_(clock),
      member_id_(MakeMemberId()) {}

LinkMemberId CommunicatorCache::member_id() {
  MutexLock lock(&mutex_);
  return member_id_;
}

absl::StatusOr<std::unique_ptr<Communicator>> CommunicatorCache::Take(const LinkTurn& turn,
                                                                      absl::Time deadline,
                                                                      const CancelToken& cancel) {
  std::unique_ptr<Communicator> kept;
  uint64_t epoch = 0;
  {
    MutexLock lock(&mutex_);
    // The sender gives one turn at a time, so whoever has it has said `done` and is about to leave.
    while (is_taken_) {
      if (clock_.WaitWithDeadline(&mutex_, &released_, deadline) && is_taken_) {
        return absl::DeadlineExceededError("another fetch keeps the communicator");
      }
    }
    is_taken_ = true;
    kept = std::move(kept_);
    epoch = epoch_;
  }
  if (turn.unique_id.empty()) {
    if (kept != nullptr && epoch == turn.epoch) return kept;
    const absl::Status status = absl::FailedPreconditionError(absl::StrCat(
        "the sender goes on with epoch ", turn.epoch, " of the communicator, which is not here"));
    Drop(std::move(kept));
    return status;
  }
  if (kept != nullptr) ++counters_.communicators_dropped;
  kept.reset();
  absl::StatusOr<std::unique_ptr<Communicator>> made =
      factory_.Create({.unique_id = turn.unique_id,
                       .rank = static_cast<int>(rank_) + 1,
                       .size = static_cast<int>(ranks_) + 1},
                      deadline, cancel);
  if (!made.ok()) {
    Drop(nullptr);
    return made.status();
  }
  ++counters_.communicators;
  return made;
}

void CommunicatorCache::GiveBack(std::unique_ptr<Communicator> communicator, uint64_t epoch) {
  Release(std::move(communicator), epoch, /*forget_member=*/false);
}

void CommunicatorCache::Drop(std::unique_ptr<Communicator> communicator) {
  if (communicator != nullptr) ++counters_.communicators_dropped;
  communicator.reset();
  Release(nullptr, 0, /*forget_member=*/true);
}

void CommunicatorCache::Release(std::unique_ptr<Communicator> kept, uint64_t epoch,
                                bool forget_member) {
  MutexLock lock(&mutex_);
  kept_ = std::move(kept);
  epoch_ = epoch;
  // The sender compares: it will not go on with a communicator that only it still has.
  if (forget_member) member_id_ = MakeMemberId();
  is_taken_ = false;
  released_.Signal();
}

}  // namespace kvtier
