#include "services/compress_queue.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "services/metrics.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Longer than a waiter goes without looking for its caller.
constexpr absl::Duration kLookInterval = absl::Seconds(1);

Key KeyOf(char name) { return *Key::FromBytes(absl::string_view(std::string(Key::kSize, name))); }

class Event {
 public:
  void Set() {
    MutexLock lock(&mutex_);
    set_ = true;
    changed_.SignalAll();
  }
  void Wait() {
    MutexLock lock(&mutex_);
    while (!set_) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mutex_) = false;
};

// A computation that a test holds by the hand: it says when it has started, goes on when told to.
class Job {
 public:
  explicit Job(std::string manifest = "manifest") : manifest_(std::move(manifest)) {}

  CompressQueue::Compute compute() {
    return [this](const CompressQueue::Progress& progress,
                  const CancelToken& cancel) -> absl::StatusOr<v1::CompressResult> {
      progress_ = &progress;
      cancel_ = &cancel;
      ++runs_;
      started_.Set();
      go_on_.Wait();
      if (failure_.ok() && cancel.cancelled()) return cancel.Check();
      if (!failure_.ok()) return failure_;
      v1::CompressResult result;
      result.set_manifest(manifest_);
      return result;
    };
  }
  void AwaitStart() { started_.Wait(); }
  void Finish() { go_on_.Set(); }
  void Fail(absl::Status status) {
    failure_ = std::move(status);
    Finish();
  }
  // REQUIRES: started, not finished.
  bool cancelled() const { return cancel_->cancelled(); }
  void Publish(v1::CompressStage stage, uint64_t done) {
    v1::CompressProgress progress;
    progress.set_stage(stage);
    progress.set_done(done);
    (*progress_)(progress);
  }
  int runs() const { return runs_; }

 private:
  const std::string manifest_;
  absl::Status failure_;
  const CompressQueue::Progress* progress_ = nullptr;
  const CancelToken* cancel_ = nullptr;
  std::atomic<int> runs_{0};
  Event started_;
  Event go_on_;
};

// One client: a thread inside Run.
class Caller {
 public:
  Caller(CompressQueue& queue, Key key, uint64_t memory_bytes, Job& job) {
    thread_ = std::thread([this, &queue, key, memory_bytes, &job] {
      result_ = queue.Run(
          key, memory_bytes, job.compute(),
          [this](const v1::CompressProgress& progress) {
            MutexLock lock(&mutex_);
            seen_.push_back(progress);
            changed_.SignalAll();
          },
          [this] { return alive_.load(); });
    });
  }
  ~Caller() {
    if (thread_.joinable()) thread_.join();
  }
  void GoAway() { alive_ = false; }
  absl::StatusOr<v1::CompressResult> Result() {
    thread_.join();
    return result_;
  }
  void AwaitStage(v1::CompressStage stage) {
    MutexLock lock(&mutex_);
    while (seen_.empty() || seen_.back().stage() != stage) changed_.Wait(&mutex_);
  }
  std::vector<v1::CompressStage> stages() {
    MutexLock lock(&mutex_);
    std::vector<v1::CompressStage> stages;
    for (const v1::CompressProgress& progress : seen_) stages.push_back(progress.stage());
    return stages;
  }

 private:
  std::atomic<bool> alive_{true};
  absl::StatusOr<v1::CompressResult> result_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<v1::CompressProgress> seen_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

class CompressQueueTest : public ::testing::Test {
 protected:
  CompressQueue& Make(CompressQueue::Options options) {
    queue_ = std::make_unique<CompressQueue>(options, metrics_, clock_);
    return *queue_;
  }
  // Every caller so far waits inside Run; none has anything left to hear.
  void AwaitCallers(int count) { clock_.AwaitWaiters(count); }
  void LetCallersLookUp() { clock_.AdvanceTime(kLookInterval); }

  SimulatedClock clock_;
  Metrics metrics_;
  std::unique_ptr<CompressQueue> queue_;
};

TEST_F(CompressQueueTest, ComputesOnceForManyRequestsOfOneKey) {
  CompressQueue& queue = Make({});
  Job job;
  Caller first(queue, KeyOf('a'), 10, job);
  job.AwaitStart();
  Caller second(queue, KeyOf('a'), 10, job);
  Caller third(queue, KeyOf('a'), 10, job);
  AwaitCallers(3);
  EXPECT_EQ(metrics_.compress_shared.Value(), 2);
  EXPECT_EQ(metrics_.compress_memory_reserved_bytes.Value(), 10);
  job.Finish();
  for (Caller* caller : {&first, &second, &third}) {
    const absl::StatusOr<v1::CompressResult> result = caller->Result();
    KVTIER_ASSERT_OK(result);
    EXPECT_EQ(result->manifest(), "manifest");
  }
  EXPECT_EQ(job.runs(), 1);
  EXPECT_EQ(metrics_.compress_memory_reserved_bytes.Value(), 0);
}

TEST_F(CompressQueueTest, ComputesDifferentKeysApart) {
  CompressQueue& queue = Make({.pool_threads = 2});
  Job a("a");
  Job b("b");
  Caller first(queue, KeyOf('a'), 10, a);
  Caller second(queue, KeyOf('b'), 10, b);
  a.AwaitStart();
  b.AwaitStart();
  b.Finish();
  a.Finish();
  EXPECT_EQ(first.Result()->manifest(), "a");
  EXPECT_EQ(second.Result()->manifest(), "b");
}

TEST_F(CompressQueueTest, ComputesAgainAfterTheFirstHasEnded) {
  CompressQueue& queue = Make({});
  Job job;
  job.Finish();
  KVTIER_EXPECT_OK(Caller(queue, KeyOf('a'), 10, job).Result());
  KVTIER_EXPECT_OK(Caller(queue, KeyOf('a'), 10, job).Result());
  EXPECT_EQ(job.runs(), 2);
  EXPECT_EQ(metrics_.compress_shared.Value(), 0);
}

TEST_F(CompressQueueTest, GivesAFailureToEveryWaiterAndKeepsNothingOfIt) {
  CompressQueue& queue = Make({});
  Job job;
  Caller first(queue, KeyOf('a'), 10, job);
  job.AwaitStart();
  Caller second(queue, KeyOf('a'), 10, job);
  AwaitCallers(2);
  job.Fail(absl::UnavailableError("no store"));
  EXPECT_THAT(first.Result(), StatusIs(absl::StatusCode::kUnavailable, "no store"));
  EXPECT_THAT(second.Result(), StatusIs(absl::StatusCode::kUnavailable, "no store"));
  Job again;
  again.Finish();
  KVTIER_EXPECT_OK(Caller(queue, KeyOf('a'), 10, again).Result());
}

TEST_F(CompressQueueTest, OutlivesItsFirstCallerWhileAnotherWaits) {
  CompressQueue& queue = Make({});
  Job job;
  Caller first(queue, KeyOf('a'), 10, job);
  job.AwaitStart();
  Caller second(queue, KeyOf('a'), 10, job);
  AwaitCallers(2);
  first.GoAway();
  LetCallersLookUp();
  EXPECT_THAT(first.Result(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(job.cancelled());
  job.Finish();
  KVTIER_EXPECT_OK(second.Result());
  EXPECT_EQ(metrics_.compress_cancelled.Value(), 0);
}

TEST_F(CompressQueueTest, CancelsWhenTheLastWaiterIsGone) {
  CompressQueue& queue = Make({});
  Job job;
  Caller first(queue, KeyOf('a'), 10, job);
  job.AwaitStart();
  Caller second(queue, KeyOf('a'), 10, job);
  AwaitCallers(2);
  first.GoAway();
  second.GoAway();
  LetCallersLookUp();
  EXPECT_THAT(first.Result(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(second.Result(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(job.cancelled());
  EXPECT_EQ(metrics_.compress_cancelled.Value(), 1);
  job.Finish();
  queue_.reset();  // Nobody waits for the job but the queue's own thread.
}

TEST_F(CompressQueueTest, NeverStartsAJobWhoseWaitersAreGone) {
  CompressQueue& queue = Make({});
  Job running;
  Job abandoned;
  Job behind;
  Caller first(queue, KeyOf('a'), 10, running);
  running.AwaitStart();
  AwaitCallers(1);
  Caller second(queue, KeyOf('b'), 10, abandoned);
  AwaitCallers(2);
  Caller third(queue, KeyOf('c'), 10, behind);
  AwaitCallers(3);
  EXPECT_EQ(metrics_.compress_queue_length.Value(), 2);
  second.GoAway();
  LetCallersLookUp();
  EXPECT_THAT(second.Result(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(metrics_.compress_queue_length.Value(), 1);
  running.Finish();
  behind.Finish();
  KVTIER_EXPECT_OK(first.Result());
  KVTIER_EXPECT_OK(third.Result());
  EXPECT_EQ(abandoned.runs(), 0);
}

TEST_F(CompressQueueTest, StartsAfreshBesideAComputationThatIsEnding) {
  CompressQueue& queue = Make({});
  Job ending("old");
  Caller first(queue, KeyOf('a'), 10, ending);
  ending.AwaitStart();
  AwaitCallers(1);
  first.GoAway();
  LetCallersLookUp();
  EXPECT_THAT(first.Result(), StatusIs(absl::StatusCode::kCancelled));
  // The old one has not noticed yet; nobody may join it.
  Job fresh("new");
  Caller second(queue, KeyOf('a'), 10, fresh);
  AwaitCallers(1);
  ending.Finish();
  fresh.Finish();
  const absl::StatusOr<v1::CompressResult> result = second.Result();
  KVTIER_ASSERT_OK(result);
  EXPECT_EQ(result->manifest(), "new");
}

TEST_F(CompressQueueTest, RefusesWithADelayWhenTheQueueIsFull) {
  CompressQueue& queue = Make({.queue_max = 1, .retry_after = absl::Seconds(7)});
  Job running;
  Job waiting;
  Job refused;
  Caller first(queue, KeyOf('a'), 10, running);
  running.AwaitStart();
  Caller second(queue, KeyOf('b'), 10, waiting);
  AwaitCallers(2);
  const absl::StatusOr<v1::CompressResult> result = Caller(queue, KeyOf('c'), 10, refused).Result();
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kResourceExhausted,
                               HasSubstr("the queue is full: 1 contexts wait")));
  EXPECT_EQ(RetryAfter(result.status()), absl::Seconds(7));
  EXPECT_EQ(metrics_.compress_refused.Value(), 1);
  // A full queue still takes requests for what is in it.
  Caller joining(queue, KeyOf('b'), 10, refused);
  AwaitCallers(3);
  running.Finish();
  waiting.Finish();
  KVTIER_EXPECT_OK(first.Result());
  KVTIER_EXPECT_OK(second.Result());
  KVTIER_EXPECT_OK(joining.Result());
  EXPECT_EQ(refused.runs(), 0);
}

TEST_F(CompressQueueTest, RefusesWithADelayWhenTooManyWaitForOneKey) {
  CompressQueue& queue = Make({.waiters_per_key_max = 1});
  Job job;
  Caller first(queue, KeyOf('a'), 10, job);
  job.AwaitStart();
  const absl::StatusOr<v1::CompressResult> result = Caller(queue, KeyOf('a'), 10, job).Result();
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("1 requests")));
  EXPECT_TRUE(RetryAfter(result.status()).has_value());
  job.Finish();
  KVTIER_EXPECT_OK(first.Result());
}

TEST_F(CompressQueueTest, RefusesForGoodWhatTheBudgetCanNeverHold) {
  CompressQueue& queue = Make({.memory_bytes_max = 100});
  Job job;
  const absl::StatusOr<v1::CompressResult> result = Caller(queue, KeyOf('a'), 101, job).Result();
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kResourceExhausted,
                               AllOf(HasSubstr("101 bytes"), HasSubstr("budget of 100"))));
  EXPECT_FALSE(RetryAfter(result.status()).has_value());
  EXPECT_EQ(job.runs(), 0);
}

TEST_F(CompressQueueTest, WaitsForMemoryThoughAPoolThreadIsFree) {
  CompressQueue& queue = Make({.pool_threads = 2, .memory_bytes_max = 100});
  Job a;
  Job b;
  Caller first(queue, KeyOf('a'), 60, a);
  a.AwaitStart();
  Caller second(queue, KeyOf('b'), 60, b);
  AwaitCallers(2);
  EXPECT_EQ(b.runs(), 0);
  EXPECT_EQ(metrics_.compress_memory_reserved_bytes.Value(), 60);
  EXPECT_EQ(metrics_.compress_queue_length.Value(), 1);
  a.Finish();
  b.AwaitStart();
  b.Finish();
  KVTIER_EXPECT_OK(first.Result());
  KVTIER_EXPECT_OK(second.Result());
}

TEST_F(CompressQueueTest, DoesNotOvertakeALargeJobAtTheHead) {
  CompressQueue& queue = Make({.pool_threads = 2, .memory_bytes_max = 100});
  Job running;
  Job large;
  Job small;
  Caller first(queue, KeyOf('a'), 60, running);
  running.AwaitStart();
  Caller second(queue, KeyOf('b'), 95, large);
  AwaitCallers(2);
  Caller third(queue, KeyOf('c'), 10, small);  // Would fit beside the first.
  AwaitCallers(3);
  EXPECT_EQ(metrics_.compress_queue_length.Value(), 2);
  running.Finish();
  large.AwaitStart();
  EXPECT_EQ(small.runs(), 0);  // And does not fit beside the large one.
  EXPECT_EQ(metrics_.compress_queue_length.Value(), 1);
  large.Finish();
  small.Finish();
  KVTIER_EXPECT_OK(first.Result());
  KVTIER_EXPECT_OK(second.Result());
  KVTIER_EXPECT_OK(third.Result());
}

TEST_F(CompressQueueTest, StartsTheNextWhenAWaitingHeadIsAbandoned) {
  CompressQueue& queue = Make({.pool_threads = 2, .memory_bytes_max = 100});
  Job running;
  Job large;
  Job small;
  Caller first(queue, KeyOf('a'), 60, running);
  running.AwaitStart();
  Caller second(queue, KeyOf('b'), 95, large);
  AwaitCallers(2);
  Caller third(queue, KeyOf('c'), 10, small);
  AwaitCallers(3);
  second.GoAway();
  LetCallersLookUp();
  small.AwaitStart();  // Beside the running one.
  running.Finish();
  small.Finish();
  KVTIER_EXPECT_OK(first.Result());
  EXPECT_THAT(second.Result(), StatusIs(absl::StatusCode::kCancelled));
  KVTIER_EXPECT_OK(third.Result());
}

TEST_F(CompressQueueTest, TellsEveryWaiterTheNewestProgress) {
  CompressQueue& queue = Make({});
  Job job;
  Caller first(queue, KeyOf('a'), 10, job);
  first.AwaitStage(v1::COMPRESS_STAGE_QUEUED);
  job.AwaitStart();
  job.Publish(v1::COMPRESS_STAGE_PREFILL, 5);
  first.AwaitStage(v1::COMPRESS_STAGE_PREFILL);
  Caller second(queue, KeyOf('a'), 10, job);
  second.AwaitStage(v1::COMPRESS_STAGE_PREFILL);
  job.Publish(v1::COMPRESS_STAGE_SCORING, 6);
  first.AwaitStage(v1::COMPRESS_STAGE_SCORING);
  second.AwaitStage(v1::COMPRESS_STAGE_SCORING);
  job.Finish();
  KVTIER_EXPECT_OK(first.Result());
  KVTIER_EXPECT_OK(second.Result());
  EXPECT_THAT(first.stages(), ElementsAre(v1::COMPRESS_STAGE_QUEUED, v1::COMPRESS_STAGE_PREFILL,
                                          v1::COMPRESS_STAGE_SCORING));
  EXPECT_THAT(second.stages(), ElementsAre(v1::COMPRESS_STAGE_PREFILL, v1::COMPRESS_STAGE_SCORING));
}

TEST_F(CompressQueueTest, ShutdownAnswersEveryWaiterAndRefusesNewWork) {
  CompressQueue& queue = Make({});
  Job running;
  Job waiting;
  Caller first(queue, KeyOf('a'), 10, running);
  running.AwaitStart();
  Caller second(queue, KeyOf('b'), 10, waiting);
  AwaitCallers(2);
  queue.Shutdown();
  EXPECT_TRUE(running.cancelled());
  EXPECT_THAT(second.Result(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  running.Finish();
  EXPECT_THAT(first.Result(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  Job late;
  EXPECT_THAT(Caller(queue, KeyOf('c'), 10, late).Result(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  EXPECT_EQ(waiting.runs() + late.runs(), 0);
  EXPECT_EQ(metrics_.compress_queue_length.Value(), 0);
}

}  // namespace
}  // namespace kvtier
