#include "cuda/sort_pairs.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;

Pairs Sorted(const Pairs& pairs, int bits) {
  std::vector<uint32_t> keys, values;
  for (const auto& [key, value] : pairs) {
    keys.push_back(key);
    values.push_back(value);
  }
  std::vector<uint32_t> spare_keys(pairs.size()), spare_values(pairs.size());
  SortPairsParams params{.keys = keys.data(),
                         .values = values.data(),
                         .spare_keys = spare_keys.data(),
                         .spare_values = spare_values.data(),
                         .count = static_cast<int64_t>(pairs.size()),
                         .bits = bits};
  EXPECT_EQ(SortPairsScratch(params, params.scratch_bytes), 0);
  std::vector<char> scratch(params.scratch_bytes);
  params.scratch = scratch.data();
  EXPECT_EQ(LaunchSortPairs(params, nullptr), 0);
  Pairs result;
  for (size_t i = 0; i < pairs.size(); ++i) result.emplace_back(params.keys[i], params.values[i]);
  return result;
}

TEST(SortPairsTest, EqualKeysKeepTheirOrder) {
  std::mt19937_64 random(TestSeed());
  Pairs pairs;
  for (uint32_t i = 0; i < 1000; ++i) pairs.emplace_back(random() % 8, i);
  const Pairs sorted = Sorted(pairs, 3);
  EXPECT_TRUE(
      std::is_sorted(sorted.begin(), sorted.end()));  // By value, too, where keys are equal.
  EXPECT_THAT(sorted, ::testing::UnorderedElementsAreArray(pairs));
}

TEST(SortPairsTest, AllBitsCount) {
  EXPECT_THAT(Sorted({{0xFFFF'FFFF, 1}, {0x8000'0000, 2}, {0, 3}, {1, 4}}, 32),
              ::testing::ElementsAre(std::pair(0u, 3u), std::pair(1u, 4u),
                                     std::pair(0x8000'0000u, 2u), std::pair(0xFFFF'FFFFu, 1u)));
}

TEST(SortPairsTest, RefusesMoreThanCanBeCountedAndTooLittleScratch) {
  SortPairsParams params{.count = int64_t{1} << 31};
  uint64_t bytes = 0;
  EXPECT_EQ(SortPairsScratch(params, bytes), kInvalidConfiguration);
  EXPECT_EQ(LaunchSortPairs(params, nullptr), kInvalidConfiguration);
  params.count = 0;
  EXPECT_EQ(LaunchSortPairs(params, nullptr), kInvalidConfiguration);
}

}  // namespace
}  // namespace kvtier
