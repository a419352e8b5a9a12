#include "bench/quality/intervals.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

std::vector<uint8_t> Bits(int ones, int zeros) {
  std::vector<uint8_t> bits(ones, 1);
  bits.resize(ones + zeros, 0);
  return bits;
}

std::vector<uint32_t> OneEach(size_t count) {
  std::vector<uint32_t> documents(count);
  for (size_t i = 0; i < count; ++i) documents[i] = static_cast<uint32_t>(i);
  return documents;
}

// Reference values: Wilson 1927 by hand, z = 1.959964.
TEST(IntervalsTest, WilsonGivesTheKnownNumbers) {
  const Interval half = Wilson(50, 100);
  EXPECT_NEAR(half.low, 0.4038, 1e-4);
  EXPECT_NEAR(half.high, 0.5962, 1e-4);
  const Interval all = Wilson(10, 10);
  EXPECT_NEAR(all.low, 0.7225, 1e-4);
  EXPECT_EQ(all.high, 1.0);
  const Interval none = Wilson(0, 10);
  EXPECT_EQ(none.low, 0.0);
  EXPECT_NEAR(none.high, 0.2775, 1e-4);
}

TEST(IntervalsTest, SamplesOfOneDocumentThatAgreeCountLess) {
  // 20 documents of 10 samples that are all right or all wrong: 20 draws, not 200.
  std::vector<uint8_t> right;
  std::vector<uint32_t> document;
  for (uint32_t d = 0; d < 20; ++d) {
    right.insert(right.end(), 10, static_cast<uint8_t>(d % 2));
    document.insert(document.end(), 10, d);
  }
  const Interval clustered = ShareRight(right, document);
  const Interval by_document = Wilson(10, 20);
  EXPECT_EQ(clustered.value, 0.5);
  EXPECT_NEAR(clustered.high - clustered.low, by_document.high - by_document.low, 0.02);
  const Interval apart = ShareRight(right, OneEach(200));
  EXPECT_LT(apart.high - apart.low, 0.5 * (clustered.high - clustered.low));
}

TEST(IntervalsTest, NoDifferingPairStillLeavesAWidth) {
  const Interval same = PairedDifference(Bits(1000, 0), Bits(1000, 0), OneEach(1000));
  EXPECT_EQ(same.value, 0.0);
  // Sqrt(1) / 1002 * 1.96: a fifth of a point.
  EXPECT_NEAR(same.high, 0.00196, 1e-5);
  EXPECT_NEAR(same.low, -0.00196, 1e-5);
}

TEST(IntervalsTest, PairedDifferenceCountsOnlyDiscordantPairs) {
  // a right and b wrong 30 times, the reverse 10 times, of 400.
  std::vector<uint8_t> a = Bits(230, 170);
  std::vector<uint8_t> b = a;
  for (int i = 0; i < 30; ++i) b[i] = 0;
  for (int i = 230; i < 240; ++i) b[i] = 1;
  const Interval difference = PairedDifference(a, b, OneEach(400));
  EXPECT_NEAR(difference.value, 0.05, 1e-12);
  const double variance = (41 - 400.0 / 402) / 402 / 402;
  EXPECT_NEAR(difference.high - difference.value, 1.96 * std::sqrt(variance), 1e-3);
  const Interval reverse = PairedDifference(b, a, OneEach(400));
  EXPECT_NEAR(reverse.low, -difference.high, 1e-12);
}

TEST(IntervalsTest, StaysInsideItsRange) {
  const Interval worst = PairedDifference(Bits(0, 5), Bits(5, 0), OneEach(5));
  EXPECT_EQ(worst.value, -1.0);
  EXPECT_EQ(worst.low, -1.0);
}

// Of 400 simulated experiments about 95 % must cover the true share; with clusters ignored it would
// be about 60 %.
TEST(IntervalsTest, CoverTheTruthUnderClusters) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform;
  int covered = 0;
  for (int experiment = 0; experiment < 400; ++experiment) {
    std::vector<uint8_t> right;
    std::vector<uint32_t> document;
    for (uint32_t d = 0; d < 50; ++d) {
      const double share = uniform(random);  // Mean 0.5.
      for (int s = 0; s < 20; ++s) {
        right.push_back(uniform(random) < share ? 1 : 0);
        document.push_back(d);
      }
    }
    const Interval interval = ShareRight(right, document);
    if (interval.low <= 0.5 && 0.5 <= interval.high) ++covered;
  }
  EXPECT_GE(covered, 365);
}

}  // namespace
}  // namespace kvtier
