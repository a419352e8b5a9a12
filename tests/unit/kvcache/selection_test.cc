#include "kvcache/selection.h"

#include <random>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

constexpr SelectionRule kRules[] = {SelectionRule::kExact, SelectionRule::kPerHead,
                                    SelectionRule::kWholeHeads, SelectionRule::kKvpress,
                                    SelectionRule::kPerLayer};

Ratio R(uint32_t millionths) { return Ratio::FromMillionths(millionths).value(); }

TEST(SelectionTest, CountsAreThoseOfTheRules) {
  const Ratio third = R(333'333);
  EXPECT_EQ(KeptPairs(SelectionRule::kExact, third, 4, 10), 13u);        // floor(13.33)
  EXPECT_EQ(KeptPairs(SelectionRule::kPerHead, third, 4, 10), 12u);      // 4 floor(3.33)
  EXPECT_EQ(KeptPairs(SelectionRule::kWholeHeads, third, 4, 10), 10u);   // floor(1.33) heads
  EXPECT_EQ(KeptPairs(SelectionRule::kKvpress, third, 4, 10), 14u);      // 40 - floor(26.67)
  EXPECT_EQ(KeptPairs(SelectionRule::kPerLayer, third, 4, 10, 2), 12u);  // 2 floor(6.67) slabs
  // A product that is whole is not rounded, where doubles would: 0.7 * 10 = 7.000..01.
  EXPECT_EQ(KeptPairs(SelectionRule::kKvpress, R(300'000), 1, 10), 3u);
  EXPECT_EQ(KeptPairs(SelectionRule::kExact, R(300'000), 1, 10), 3u);
}

TEST(SelectionTest, KeepsAllAtOneAndGrowsWithTheRatio) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 2000; ++i) {
    const uint64_t heads = random() % 40;
    const uint64_t tokens = random() % 1000;
    const uint32_t low = 1 + random() % Ratio::kOne;
    const uint32_t high = low + random() % (Ratio::kOne - low + 1);
    for (const SelectionRule rule : kRules) {
      EXPECT_EQ(KeptPairs(rule, Ratio(), heads, tokens), heads * tokens);
      EXPECT_LE(KeptPairs(rule, R(low), heads, tokens), KeptPairs(rule, R(high), heads, tokens));
    }
    // kvpress removes floor((1 - r) N).
    const uint64_t pairs = heads * tokens;
    EXPECT_EQ(pairs - KeptPairs(SelectionRule::kKvpress, R(low), heads, tokens),
              (Ratio::kOne - low) * pairs / Ratio::kOne);
  }
}

TEST(SelectionTest, OnlyKvpressRanksTheSystemPrompt) {
  for (const SelectionRule rule : kRules) {
    const bool kvpress = rule == SelectionRule::kKvpress;
    EXPECT_EQ(ProtectsSystemPrompt(rule), !kvpress);
    EXPECT_EQ(RankedTokens(rule, 3, 10), kvpress ? 13u : 10u);
    EXPECT_EQ(PutsFirstTokenFirst(rule), !kvpress && rule != SelectionRule::kWholeHeads);
  }
}

}  // namespace
}  // namespace kvtier
