#include "base/clock.h"

#include <chrono>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(RealClockTest, TellsTheTimeOfTheMachine) {
  const absl::Time before = absl::Now();
  const absl::Time now = Clock::Real().Now();
  EXPECT_GE(now, before);
  EXPECT_LE(now, absl::Now());
}

TEST(RealClockTest, SleepsAtLeastTheDuration) {
  const auto start = std::chrono::steady_clock::now();
  Clock::Real().SleepFor(absl::Microseconds(100));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::microseconds(100));
}

TEST(RealClockTest, SleepOfNothingReturns) {
  Clock::Real().SleepFor(absl::ZeroDuration());
  Clock::Real().SleepFor(-absl::InfiniteDuration());
}

TEST(RealClockTest, WaitReturnsTrueOnceTheDeadlineHasPassed) {
  Mutex mutex;
  CondVar never;
  MutexLock lock(&mutex);
  EXPECT_TRUE(Clock::Real().WaitWithDeadline(&mutex, &never, absl::InfinitePast()));
  EXPECT_TRUE(Clock::Real().WaitWithDeadline(&mutex, &never, absl::Now()));
  const absl::Time deadline = absl::Now() + absl::Microseconds(100);
  while (!Clock::Real().WaitWithDeadline(&mutex, &never, deadline)) {
  }
  EXPECT_GE(absl::Now(), deadline);
}

TEST(RealClockTest, SignalEndsAWaitWithoutDeadline) {
  for (const absl::Time deadline :
       {absl::InfiniteFuture(), absl::UniversalEpoch() + absl::Hours(24) * 365 * 1'000'000}) {
    Mutex mutex;
    CondVar changed;
    bool ready = false;
    std::thread waiter([&] {
      MutexLock lock(&mutex);
      while (!ready) {
        EXPECT_FALSE(Clock::Real().WaitWithDeadline(&mutex, &changed, deadline));
      }
    });
    {
      MutexLock lock(&mutex);
      ready = true;
      changed.Signal();
    }
    waiter.join();
  }
}

}  // namespace
}  // namespace kvtier
