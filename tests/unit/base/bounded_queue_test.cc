#include "base/bounded_queue.h"

#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::Eq;
using ::testing::Optional;
using ::testing::Pointee;

constexpr absl::StatusCode kDeadline = absl::StatusCode::kDeadlineExceeded;
constexpr absl::StatusCode kCancelled = absl::StatusCode::kCancelled;

TEST(BoundedQueueTest, GivesItemsInOrder) {
  SimulatedClock clock;
  BoundedQueue<int> queue(3, clock);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  KVTIER_EXPECT_OK(queue.Push(3, clock.Now()));
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_THAT(queue.TryPop(), Optional(1));
  EXPECT_THAT(queue.Pop(clock.Now()), IsOkAndHolds(2));
  EXPECT_THAT(queue.Pop(clock.Now()), IsOkAndHolds(3));
  EXPECT_THAT(queue.TryPop(), Eq(std::nullopt));
}

TEST(BoundedQueueTest, FullQueueRefusesAndLeavesTheItemAlone) {
  SimulatedClock clock;
  BoundedQueue<std::unique_ptr<int>> queue(1, clock);
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  auto item = std::make_unique<int>(2);
  EXPECT_FALSE(queue.TryPush(std::move(item)));
  EXPECT_THAT(item, Pointee(2));
  EXPECT_THAT(queue.Push(std::move(item), clock.Now()), StatusIs(kDeadline));
  EXPECT_THAT(item, Pointee(2));
  EXPECT_EQ(queue.size(), 1u);
}

TEST(BoundedQueueTest, PushWaitsForRoom) {
  SimulatedClock clock;
  BoundedQueue<int> queue(1, clock);
  EXPECT_TRUE(queue.TryPush(1));
  std::thread producer([&] { KVTIER_EXPECT_OK(queue.Push(2, clock.Now() + absl::Seconds(1))); });
  clock.AwaitWaiters(1);
  EXPECT_THAT(queue.TryPop(), Optional(1));
  producer.join();
  EXPECT_THAT(queue.TryPop(), Optional(2));
}

TEST(BoundedQueueTest, PushEndsAtItsDeadline) {
  SimulatedClock clock;
  BoundedQueue<int> queue(1, clock);
  EXPECT_TRUE(queue.TryPush(1));
  std::thread producer(
      [&] { EXPECT_THAT(queue.Push(2, clock.Now() + absl::Seconds(1)), StatusIs(kDeadline)); });
  clock.AwaitWaiters(1);
  clock.AdvanceTime(absl::Seconds(1));
  producer.join();
  EXPECT_EQ(queue.size(), 1u);
}

TEST(BoundedQueueTest, PopWaitsForAnItem) {
  SimulatedClock clock;
  BoundedQueue<int> queue(1, clock);
  std::thread consumer([&] { EXPECT_THAT(queue.Pop(absl::InfiniteFuture()), IsOkAndHolds(1)); });
  clock.AwaitWaiters(1);
  EXPECT_TRUE(queue.TryPush(1));
  consumer.join();
}

TEST(BoundedQueueTest, PopEndsAtItsDeadline) {
  SimulatedClock clock;
  BoundedQueue<int> queue(1, clock);
  EXPECT_THAT(queue.Pop(clock.Now()), StatusIs(kDeadline));
  std::thread consumer(
      [&] { EXPECT_THAT(queue.Pop(clock.Now() + absl::Seconds(1)), StatusIs(kDeadline)); });
  clock.AwaitWaiters(1);
  clock.AdvanceTime(absl::Seconds(1));
  consumer.join();
}

TEST(BoundedQueueTest, ClosedQueueDrainsAndThenSaysSo) {
  SimulatedClock clock;
  BoundedQueue<int> queue(2, clock);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_FALSE(queue.closed());
  queue.Close();
  queue.Close();
  EXPECT_TRUE(queue.closed());
  EXPECT_FALSE(queue.TryPush(2));
  EXPECT_THAT(queue.Push(2, absl::InfiniteFuture()), StatusIs(kCancelled));
  EXPECT_THAT(queue.Pop(absl::InfiniteFuture()), IsOkAndHolds(1));
  EXPECT_THAT(queue.Pop(absl::InfiniteFuture()), StatusIs(kCancelled));
}

TEST(BoundedQueueTest, CloseWakesEverybody) {
  SimulatedClock clock;
  BoundedQueue<int> empty(1, clock);
  BoundedQueue<int> full(1, clock);
  EXPECT_TRUE(full.TryPush(1));
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back(
        [&] { EXPECT_THAT(empty.Pop(absl::InfiniteFuture()), StatusIs(kCancelled)); });
    threads.emplace_back(
        [&] { EXPECT_THAT(full.Push(2, absl::InfiniteFuture()), StatusIs(kCancelled)); });
  }
  clock.AwaitWaiters(6);
  empty.Close();
  full.Close();
  for (std::thread& thread : threads) thread.join();
}

TEST(BoundedQueueTest, EveryItemOfManyProducersArrivesOnce) {
  constexpr int kProducers = 3;
  constexpr int kItemsEach = 500;
  BoundedQueue<int> queue(4, Clock::Real());
  std::vector<std::thread> producers;
  for (int p = 0; p < kProducers; ++p) {
    producers.emplace_back([&queue, p] {
      for (int i = 0; i < kItemsEach; ++i) {
        KVTIER_EXPECT_OK(queue.Push(p * kItemsEach + i, absl::InfiniteFuture()));
      }
    });
  }
  std::vector<std::vector<int>> taken(2);
  std::vector<std::thread> consumers;
  for (std::vector<int>& items : taken) {
    consumers.emplace_back([&queue, &items] {
      for (absl::StatusOr<int> item = queue.Pop(absl::InfiniteFuture()); item.ok();
           item = queue.Pop(absl::InfiniteFuture())) {
        items.push_back(*item);
      }
    });
  }
  for (std::thread& producer : producers) producer.join();
  queue.Close();
  for (std::thread& consumer : consumers) consumer.join();

  std::vector<int> all = taken[0];
  all.insert(all.end(), taken[1].begin(), taken[1].end());
  std::ranges::sort(all);
  std::vector<int> expected(kProducers * kItemsEach);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(all, expected);
}

TEST(BoundedQueueDeathTest, NeedsACapacity) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(BoundedQueue<int>(0, Clock::Real()), "capacity > 0");
}

}  // namespace
}  // namespace kvtier
