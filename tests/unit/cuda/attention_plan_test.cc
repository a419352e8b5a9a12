// Plans cover every key that a row sees exactly once, whatever the heads look like.
#include "cuda/math/attention_plan.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

void ExpectCovers(const AttentionShape& shape, const AttentionPlan& plan) {
  // (head, first row) -> its items, in order.
  std::map<std::pair<int64_t, int64_t>, std::vector<AttentionItem>> tiles;
  for (const AttentionItem& item : plan.items) {
    ASSERT_LT(item.key_begin, item.key_end);
    tiles[{item.head, item.first_row}].push_back(item);
  }
  const int64_t rows = shape.query_rows * shape.group;
  std::vector<bool> slots(plan.slots);
  size_t merges = 0;
  for (int64_t head = 0; head < static_cast<int64_t>(shape.head_rows.size()); ++head) {
    for (int64_t first = 0; first < rows; first += shape.query_tile) {
      const std::vector<AttentionItem>& items = tiles[{head, first}];
      ASSERT_FALSE(items.empty());
      for (size_t i = 0; i < items.size(); ++i) {
        ASSERT_EQ(items[i].slot >= 0, items.size() > 1);
        if (items.size() > 1) {
          ASSERT_FALSE(slots[items[i].slot]);
          slots[items[i].slot] = true;
          ASSERT_EQ(items[i].slot, items[0].slot + static_cast<int64_t>(i));
        }
        if (i > 0) {
          ASSERT_EQ(items[i].key_begin, items[i - 1].key_end);
        }
      }
      if (items.size() > 1) {
        const AttentionMerge& merge = plan.merges[merges++];
        ASSERT_EQ(merge.head, head);
        ASSERT_EQ(merge.first_row, first);
        ASSERT_EQ(merge.slot_begin, items.front().slot);
        ASSERT_EQ(merge.slot_end, items.back().slot + 1);
      }
      for (int64_t r = first; r < std::min(first + shape.query_tile, rows); ++r) {
        for (const int64_t fewer : {int64_t{0}, shape.rows_fewer / 2, shape.rows_fewer}) {
          const int64_t end =
              KeysEnd(shape.head_rows[head] - fewer, shape.query_rows, r / shape.group);
          ASSERT_LE(items.front().key_begin, KeysBegin(end, shape.window));
          ASSERT_GE(items.back().key_end, end);
        }
      }
    }
  }
  EXPECT_EQ(merges, plan.merges.size());
  EXPECT_THAT(slots, ::testing::Each(true));
}

TEST(AttentionPlanTest, CoversWhatEveryRowSees) {
  std::mt19937_64 random(TestSeed());
  for (int attempt = 0; attempt < 300; ++attempt) {
    AttentionShape shape;
    shape.query_rows = 1 + static_cast<int64_t>(random() % 70);
    shape.group = 1 + static_cast<int64_t>(random() % 9);
    shape.window = random() % 3 == 0 ? 1 + static_cast<int64_t>(random() % 2000) : 0;
    shape.items_wanted = static_cast<int64_t>(random() % 400);
    shape.query_tile = random() % 2 == 0 ? kQueryTile : 64;
    shape.rows_fewer = random() % 2 == 0 ? static_cast<int64_t>(random() % 300) : 0;
    const size_t heads = 1 + random() % 8;
    for (size_t h = 0; h < heads; ++h) {
      const int64_t extra = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 20000);
      shape.head_rows.push_back(shape.query_rows + shape.rows_fewer + extra);
    }
    ExpectCovers(shape, PlanAttention(shape));
    if (HasFatalFailure()) return;
  }
}

// One head holding nearly everything is cut as finely as many equal ones.
TEST(AttentionPlanTest, UnevenHeadsMakeEvenItems) {
  const AttentionShape even{
      .query_rows = 1, .group = 4, .head_rows = {4000, 4000, 4000, 4000}, .items_wanted = 32};
  const AttentionShape uneven{
      .query_rows = 1, .group = 4, .head_rows = {15997, 1, 1, 1}, .items_wanted = 32};
  const auto largest = [](const AttentionPlan& plan) {
    int64_t keys = 0;
    for (const AttentionItem& item : plan.items)
      keys = std::max(keys, item.key_end - item.key_begin);
    return keys;
  };
  EXPECT_EQ(largest(PlanAttention(even)), largest(PlanAttention(uneven)));
  EXPECT_EQ(largest(PlanAttention(even)), 512);
  EXPECT_LE(PlanAttention(uneven).items.size(), 32u + 4u);
}

TEST(AttentionPlanTest, SmallContextsAreNotCut) {
  const AttentionPlan plan =
      PlanAttention({.query_rows = 3, .group = 2, .head_rows = {200, 256}, .items_wanted = 1000});
  EXPECT_EQ(plan.items.size(), 2u);
  EXPECT_TRUE(plan.merges.empty());
}

TEST(AttentionPlanTest, WindowsBoundWhatARowSees) {
  EXPECT_EQ(KeysEnd(10, 3, 0), 8);
  EXPECT_EQ(KeysEnd(10, 3, 2), 10);
  EXPECT_EQ(KeysBegin(8, 0), 0);
  EXPECT_EQ(KeysBegin(8, 8), 0);
  EXPECT_EQ(KeysBegin(8, 9), 0);
  EXPECT_EQ(KeysBegin(8, 3), 5);
}

}  // namespace
}  // namespace kvtier
