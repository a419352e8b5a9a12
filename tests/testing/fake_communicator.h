// Communicators between threads of one process, for tests of everything above NCCL: bytes go
// through queues, and each end does what its script says. "Device memory" is host memory.
//
//   FakeLinks links(Clock::Real());
//   FakeCommunicatorFactory sender(links), worker(links);   // One per process that is played.
//   worker.FailAt(7, FakeCommunicatorFactory::Fault::kDie);
//
// Like NCCL's they tell nobody that a peer has died: who waits for it waits until its deadline or
// until somebody calls Abort. A send is done only when it was received.
#ifndef KVTIER_TESTS_TESTING_FAKE_COMMUNICATOR_H_
#define KVTIER_TESTS_TESTING_FAKE_COMMUNICATOR_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "kvcache/communicator.h"

namespace kvtier {

// The wires between the factories of a test. Thread-safe.
class FakeLinks {
 public:
  explicit FakeLinks(Clock& clock) : clock_(clock) {}

  // Operations asked of a communicator that had returned an error before: what nobody must do.
  // Wait, QueryError and Abort are allowed.
  int uses_after_failure();
  // Groups that were made whole.
  int groups_made();
  // Blocks until somebody has reached the step at which it hangs.
  void AwaitHanging();

 private:
  friend class FakeCommunicator;
  friend class FakeCommunicatorFactory;
  struct Message {
    std::vector<std::byte> bytes;
    bool is_taken = false;
  };
  struct Group {
    int size = 0;
    std::set<int> ranks;
    std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> queues;  // (from, to)
  };

  Clock& clock_;
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::shared_ptr<Group>> groups_ ABSL_GUARDED_BY(mutex_);
  int uses_after_failure_ ABSL_GUARDED_BY(mutex_) = 0;
  int groups_made_ ABSL_GUARDED_BY(mutex_) = 0;
  int hanging_ ABSL_GUARDED_BY(mutex_) = 0;  // Ends that hang, or have hung.
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
};

// One process. Thread-safe; outlives its communicators.
class FakeCommunicatorFactory final : public CommunicatorFactory {
 public:
  enum class Fault {
    kDie,   // This step and all later ones fail here at once; the peers hear nothing.
    kHang,  // This step lasts until its deadline, or until it is aborted or cancelled.
  };

  explicit FakeCommunicatorFactory(FakeLinks& links) : links_(links) {}

  // Steps are MakeUniqueId and Create, and of communicators every call but Abort, QueryError and
  // the destructor. Counted from 1, from the last call of this on; step 0: no fault.
  void FailAt(int step, Fault fault);
  int steps() const { return steps_.load(); }
  // From now on every message from here has one bit inverted.
  void Corrupt() { corrupts_ = true; }
  // How far ends got: operations of this process, in order, e.g. "create send send end wait".
  std::string steps_taken();

  absl::StatusOr<std::string> MakeUniqueId() override;
  absl::StatusOr<std::unique_ptr<Communicator>> Create(const Membership& membership,
                                                       absl::Time deadline,
                                                       const CancelToken& cancel) override;

 private:
  friend class FakeCommunicator;
  // Counts a step and does what the script says. OK: go on. `is_hanging`: block instead.
  absl::Status Step(const char* name, bool* is_hanging);

  FakeLinks& links_;
  std::atomic<int> steps_{0};
  std::atomic<int> fail_at_{0};
  std::atomic<Fault> fault_{Fault::kDie};
  std::atomic<bool> corrupts_{false};
  Mutex mutex_;
  std::string taken_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_FAKE_COMMUNICATOR_H_
