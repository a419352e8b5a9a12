#include "services/drain_signal.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(DrainSignalTest, EveryListenerHearsItOnce) {
  DrainSignal signal;
  int calls = 0;
  const auto a = signal.Listen([&] { ++calls; });
  const auto b = signal.Listen([&] { ++calls; });
  signal.Fire();
  EXPECT_EQ(calls, 2);
  signal.Fire();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(signal.Listen([&] { ++calls; }), nullptr);
  EXPECT_EQ(calls, 2);
}

TEST(DrainSignalTest, WhoHasStoppedListeningHearsNothing) {
  DrainSignal signal;
  int calls = 0;
  auto gone = signal.Listen([&] { ++calls; });
  gone.reset();
  signal.Fire();
  EXPECT_EQ(calls, 0);
}

TEST(DrainSignalTest, NoCallBeginsAfterItAndThoseBeforeAreWaitedFor) {
  DrainSignal signal;
  EXPECT_TRUE(CheckNotDraining(&signal).ok());
  EXPECT_TRUE(CheckNotDraining(nullptr).ok());
  EXPECT_TRUE(signal.Enter());
  EXPECT_TRUE(signal.Enter());
  signal.Fire();
  EXPECT_FALSE(signal.Enter());
  EXPECT_EQ(CheckNotDraining(&signal).code(), absl::StatusCode::kUnavailable);
  signal.Leave();
  EXPECT_FALSE(signal.AwaitCalls(absl::InfinitePast(), Clock::Real()));
  std::thread last([&] { signal.Leave(); });
  EXPECT_TRUE(signal.AwaitCalls(absl::InfiniteFuture(), Clock::Real()));
  last.join();
  EXPECT_TRUE(signal.AwaitCalls(absl::InfinitePast(), Clock::Real()));
}

// Callbacks touch what dies right after their listener: for the thread sanitizer and ASan.
TEST(DrainSignalTest, AListenerThatIsGoneIsNotCalledAnyMore) {
  for (int round = 0; round < 200; ++round) {
    DrainSignal signal;
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        auto calls = std::make_unique<std::atomic<int>>(0);
        auto listener = signal.Listen([&] { ++*calls; });
        listener.reset();
        EXPECT_LE(calls->load(), 1);
        calls.reset();
      });
    }
    signal.Fire();
    for (std::thread& thread : threads) thread.join();
  }
}

}  // namespace
}  // namespace kvtier
