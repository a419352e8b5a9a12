#include "base/simulated_clock.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(SimulatedClockTest, MovesOnlyWhenAdvanced) {
  SimulatedClock clock;
  EXPECT_EQ(clock.Now(), SimulatedClock::DefaultStart());
  clock.AdvanceTime(absl::Seconds(5));
  EXPECT_EQ(clock.Now(), SimulatedClock::DefaultStart() + absl::Seconds(5));
  clock.AdvanceTo(SimulatedClock::DefaultStart());  // The past: nothing.
  EXPECT_EQ(clock.Now(), SimulatedClock::DefaultStart() + absl::Seconds(5));
}

TEST(SimulatedClockTest, SleepOfNothingReturns) {
  SimulatedClock clock;
  clock.SleepFor(absl::ZeroDuration());
  clock.SleepFor(-absl::Seconds(1));
}

TEST(SimulatedClockTest, SleepEndsExactlyAtItsTime) {
  SimulatedClock clock;
  std::atomic<bool> awake = false;
  std::thread sleeper([&] {
    clock.SleepFor(absl::Seconds(5));
    awake = true;
  });
  clock.AwaitWaiters(1);
  clock.AdvanceTime(absl::Seconds(5) - absl::Nanoseconds(1));
  EXPECT_EQ(clock.waiter_count(), 1);
  EXPECT_FALSE(awake);
  clock.AdvanceTime(absl::Nanoseconds(1));
  EXPECT_EQ(clock.waiter_count(), 0);
  sleeper.join();
}

TEST(SimulatedClockTest, OneAdvanceWakesEverybodyWhoseTimeHasCome) {
  SimulatedClock clock;
  std::vector<std::thread> sleepers;
  for (int i = 1; i <= 4; ++i) {
    sleepers.emplace_back([&clock, i] { clock.SleepFor(absl::Seconds(i)); });
  }
  clock.AwaitWaiters(4);
  clock.AdvanceTime(absl::Seconds(3));
  for (int i = 0; i < 3; ++i) sleepers[i].join();
  EXPECT_EQ(clock.waiter_count(), 1);
  clock.AdvanceTime(absl::Seconds(1));
  sleepers[3].join();
}

TEST(SimulatedClockTest, WaitWithAPassedDeadlineReturnsTrueAtOnce) {
  SimulatedClock clock;
  Mutex mutex;
  CondVar never;
  MutexLock lock(&mutex);
  EXPECT_TRUE(clock.WaitWithDeadline(&mutex, &never, clock.Now()));
  EXPECT_TRUE(clock.WaitWithDeadline(&mutex, &never, absl::InfinitePast()));
}

TEST(SimulatedClockTest, SignalEndsAWaitBeforeItsDeadline) {
  SimulatedClock clock;
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  bool expired = true;
  std::thread waiter([&] {
    MutexLock lock(&mutex);
    while (!ready) {
      expired = clock.WaitWithDeadline(&mutex, &changed, clock.Now() + absl::Seconds(1));
    }
  });
  clock.AwaitWaiters(1);
  {
    MutexLock lock(&mutex);
    ready = true;
    changed.Signal();
  }
  waiter.join();
  EXPECT_FALSE(expired);
}

TEST(SimulatedClockTest, InfiniteFutureWaitsForTheSignalAlone) {
  SimulatedClock clock;
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread waiter([&] {
    MutexLock lock(&mutex);
    while (!ready) {
      EXPECT_FALSE(clock.WaitWithDeadline(&mutex, &changed, absl::InfiniteFuture()));
    }
  });
  clock.AwaitWaiters(1);
  clock.AdvanceTime(absl::Hours(1'000'000));
  EXPECT_EQ(clock.waiter_count(), 1);
  {
    MutexLock lock(&mutex);
    ready = true;
    changed.Signal();
  }
  waiter.join();
}

// A signal and an advance race for each waiter, whose mutex and condition die as soon as it
// returns: the sanitizers see it if AdvanceTime touches them later.
TEST(SimulatedClockTest, AdvanceNeverTouchesAWaiterThatHasLeft) {
  struct Place {
    Mutex mutex;
    CondVar changed;
    bool ready = false;
  };
  SimulatedClock clock;
  for (int round = 0; round < 300; ++round) {
    auto place = std::make_unique<Place>();
    Mutex handover_mutex;  // The signaller's use of `place` ends under it.
    std::thread waiter([&] {
      const absl::Time deadline = clock.Now() + absl::Seconds(1);
      bool leave = false;
      while (!leave) {
        MutexLock lock(&place->mutex);
        leave = place->ready || clock.WaitWithDeadline(&place->mutex, &place->changed, deadline);
      }
      MutexLock handover(&handover_mutex);
      place.reset();
    });
    std::thread signaller([&] {
      MutexLock handover(&handover_mutex);
      if (place == nullptr) return;
      MutexLock lock(&place->mutex);
      place->ready = true;
      place->changed.Signal();
    });
    clock.AdvanceTime(absl::Seconds(1));
    signaller.join();
    waiter.join();
    EXPECT_EQ(clock.waiter_count(), 0);
  }
}

TEST(SimulatedClockTest, ConcurrentAdvancesAddUp) {
  SimulatedClock clock;
  std::thread sleeper([&] { clock.SleepFor(absl::Seconds(200)); });
  clock.AwaitWaiters(1);
  std::vector<std::thread> advancers;
  for (int i = 0; i < 4; ++i) {
    advancers.emplace_back([&] {
      for (int j = 0; j < 50; ++j) clock.AdvanceTime(absl::Seconds(1));
    });
  }
  for (std::thread& advancer : advancers) advancer.join();
  EXPECT_EQ(clock.Now(), SimulatedClock::DefaultStart() + absl::Seconds(200));
  sleeper.join();
}

}  // namespace
}  // namespace kvtier
