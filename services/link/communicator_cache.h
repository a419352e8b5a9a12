// The receiving end's communicator between the fetches that use it: at most one, for one group.
#ifndef KVTIER_SERVICES_LINK_COMMUNICATOR_CACHE_H_
#define KVTIER_SERVICES_LINK_COMMUNICATOR_CACHE_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/cancel_token.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "kvcache/communicator.h"
#include "services/link/link_counters.h"
#include "services/link/link_sender.h"

namespace kvtier {

// Thread-safe. Factory, counters and clock outlive it.
class CommunicatorCache {
 public:
  // A worker is rank + 1 of ranks + 1.
  CommunicatorCache(CommunicatorFactory& factory, uint32_t ranks, uint32_t rank,
                    LinkCounters& counters, Clock& clock);

  // Names this worker and the communicator that it has: another one after each Drop.
  LinkMemberId member_id();

  // The communicator that `turn` names: made from its id, or the one that is kept. Waits while
  // another fetch has it. Ends with GiveBack or Drop.
  //   FAILED_PRECONDITION  no communicator of that epoch is kept
  //   DEADLINE_EXCEEDED    another fetch kept it until then
  //   as CommunicatorFactory.Create
  absl::StatusOr<std::unique_ptr<Communicator>> Take(const LinkTurn& turn, absl::Time deadline,
                                                     const CancelToken& cancel);
  // After a transfer without any failure.
  void GiveBack(std::unique_ptr<Communicator> communicator, uint64_t epoch);
  // After every other one. REQUIRES: aborted, and no buffer is in use.
  void Drop(std::unique_ptr<Communicator> communicator);

 private:
  void Release(std::unique_ptr<Communicator> kept, uint64_t epoch, bool forget_member);

  CommunicatorFactory& factory_;
  const uint32_t ranks_;
  const uint32_t rank_;
  LinkCounters& counters_;
  Clock& clock_;
  Mutex mutex_;
  CondVar released_;
  bool is_taken_ ABSL_GUARDED_BY(mutex_) = false;
  LinkMemberId member_id_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Communicator> kept_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_COMMUNICATOR_CACHE_H_
