#include "store/turns.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(TurnsTest, OneHolderPerNameAtATime) {
  Turns turns;
  std::optional<Turns::Turn> a = turns.TryTake("a");
  ASSERT_TRUE(a.has_value());
  EXPECT_FALSE(turns.TryTake("a").has_value());
  EXPECT_TRUE(turns.TryTake("b").has_value());
  a.reset();
  EXPECT_TRUE(turns.TryTake("a").has_value());
}

TEST(TurnsTest, AMovedTurnEndsOnce) {
  Turns turns;
  {
    Turns::Turn first = turns.Take("a");
    const Turns::Turn second = std::move(first);
    EXPECT_FALSE(turns.TryTake("a").has_value());
  }
  EXPECT_TRUE(turns.TryTake("a").has_value());
}

TEST(TurnsTest, WaitersGetTheirTurnOneByOne) {
  Turns turns;
  std::atomic<int> inside{0};
  int count = 0;  // Guarded by the turn.
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        const Turns::Turn turn = turns.Take("a");
        EXPECT_EQ(inside.fetch_add(1), 0);
        ++count;
        inside.fetch_sub(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 800);
}

}  // namespace
}  // namespace kvtier
