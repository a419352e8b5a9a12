// The bound of a plan cache, and what it drops.
#include "cuda/plan_cache.h"

#include <memory>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(PlanCacheTest, KeepsWhatWasUsedLast) {
  PlanCache<int, std::unique_ptr<int>> cache(3);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(cache.full());
    EXPECT_EQ(cache.Find(i), nullptr);
    cache.Insert(i, std::make_unique<int>(10 * i));
  }
  EXPECT_TRUE(cache.full());
  const int* const first = cache.Find(0)->get();  // 1 is now the oldest.
  cache.Insert(3, std::make_unique<int>(30));
  EXPECT_EQ(cache.size(), 3u);
  EXPECT_EQ(cache.Find(1), nullptr);
  EXPECT_EQ(cache.Find(0)->get(), first);
  EXPECT_EQ(**cache.Find(2), 20);
  EXPECT_EQ(**cache.Find(3), 30);
  cache.Insert(4, std::make_unique<int>(40));
  EXPECT_EQ(cache.Find(0), nullptr);
}

TEST(PlanCacheTest, NeverHoldsMoreThanItsBound) {
  PlanCache<int, int> cache(5);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(cache.Insert(i, i), i);
    EXPECT_LE(cache.size(), 5u);
  }
  for (int i = 95; i < 100; ++i) EXPECT_EQ(*cache.Find(i), i);
}

}  // namespace
}  // namespace kvtier
