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
  const Interval clustered = ShareRight(right, document, /*rho=*/0);
  const Interval by_document = Wilson(10, 20, StudentT95(19));
  EXPECT_EQ(clustered.value, 0.5);
  EXPECT_NEAR(clustered.high - clustered.low, by_document.high - by_document.low, 0.02);
  const Interval apart = ShareRight(right, OneEach(200), 0);
  EXPECT_LT(apart.high - apart.low, 0.5 * (clustered.high - clustered.low));
}

TEST(IntervalsTest, NoDifferingPairStillLeavesAWidth) {
  const Interval same = PairedDifference(Bits(1000, 0), Bits(1000, 0), OneEach(1000), 0);
  EXPECT_EQ(same.value, 0.0);
  // 1.962 / 1002: a fifth of a point.
  EXPECT_NEAR(same.high, 0.00196, 1e-5);
  EXPECT_NEAR(same.low, -0.00196, 1e-5);
}

TEST(IntervalsTest, PairedDifferenceCountsOnlyDiscordantPairs) {
  // a right and b wrong 30 times, the reverse 10 times, of 400.
  std::vector<uint8_t> a = Bits(230, 170);
  std::vector<uint8_t> b = a;
  for (int i = 0; i < 30; ++i) b[i] = 0;
  for (int i = 230; i < 240; ++i) b[i] = 1;
  const Interval difference = PairedDifference(a, b, OneEach(400), 0);
  EXPECT_NEAR(difference.value, 0.05, 1e-12);
  const double variance = (41 - 400.0 / 402) / 402 / 402;
  EXPECT_NEAR(difference.high - difference.value, StudentT95(399) * std::sqrt(variance), 1e-4);
  const Interval reverse = PairedDifference(b, a, OneEach(400), 0);
  EXPECT_NEAR(reverse.low, -difference.high, 1e-12);
}

TEST(IntervalsTest, StaysInsideItsRange) {
  const Interval worst = PairedDifference(Bits(0, 5), Bits(5, 0), OneEach(5), 0);
  EXPECT_EQ(worst.value, -1.0);
  EXPECT_EQ(worst.low, -1.0);
}

// Published tables of Student's t.
TEST(IntervalsTest, StudentsQuantilesAreTheKnownNumbers) {
  const struct {
    uint32_t degrees;
    double quantile;
  } known[] = {{1, 12.706}, {2, 4.303},  {3, 3.182},  {4, 2.776},  {5, 2.571},
               {9, 2.262},  {10, 2.228}, {30, 2.042}, {120, 1.980}};
  for (const auto& one : known) {
    EXPECT_NEAR(StudentT95(one.degrees), one.quantile, 5e-4) << one.degrees;
  }
  EXPECT_NEAR(StudentT95(100'000), kZ95, 1e-4);
}

// `count` documents of `each` samples.
std::vector<uint32_t> Documents(uint32_t count, uint32_t each) {
  std::vector<uint32_t> document;
  for (uint32_t d = 0; d < count; ++d) document.insert(document.end(), each, d);
  return document;
}

TEST(IntervalsTest, CorrelationIsWhatTheCellsShow) {
  const std::vector<uint32_t> document = Documents(20, 10);
  std::vector<uint8_t> together(200);   // A document is all right or all wrong.
  std::vector<uint8_t> alternate(200);  // Every document has as many right as the others.
  for (size_t i = 0; i < 200; ++i) {
    together[i] = document[i] % 2;
    alternate[i] = i % 2;
  }
  const std::vector<uint8_t> all_right(200, 1);
  const auto of = [&](std::vector<std::span<const uint8_t>> cells) {
    return IntraclassCorrelation(cells, document);
  };
  EXPECT_EQ(of({together}), 1.0);
  EXPECT_EQ(of({alternate}), 0.0);
  // Effects 10 * 20 / 19 and 0, and as much variance in both cells: 5.26, so rho is 4.26 / 9.
  EXPECT_NEAR(of({together, alternate}), (100.0 / 19 - 1) / 9, 1e-12);
  EXPECT_EQ(of({together, alternate, all_right}), of({together, alternate}));
  // Nothing known: a document is one draw.
  EXPECT_EQ(of({all_right}), 1.0);
  EXPECT_EQ(of({}), 1.0);
  const std::vector<std::span<const uint8_t>> cells = {alternate};
  EXPECT_EQ(IntraclassCorrelation(cells, Documents(1, 200)), 1.0);
  EXPECT_EQ(IntraclassCorrelation(cells, OneEach(200)), 0.0);
}

// A cell without a wrong answer is as wide as the task's other cells say.
TEST(IntervalsTest, AllRightIsWidenedByTheTasksCorrelation) {
  const std::vector<uint32_t> document = Documents(30, 10);
  const std::vector<uint8_t> all(300, 1);
  const double t = StudentT95(29);
  EXPECT_NEAR(ShareRight(all, document, 0).low, Wilson(300, 300, t).low, 1e-12);
  EXPECT_NEAR(ShareRight(all, document, 1).low, Wilson(30, 30, t).low, 1e-12);
  // 1 + 9 / 3 = 4.
  EXPECT_NEAR(ShareRight(all, document, 1.0 / 3).low, Wilson(75, 75, t).low, 1e-12);
  EXPECT_NEAR(PairedDifference(all, all, document, 0).high, t / 302, 1e-12);
  EXPECT_NEAR(PairedDifference(all, all, document, 1.0 / 3).high, t / 77, 1e-12);
  // One more wrong answer does not make an interval narrower.
  std::vector<uint8_t> one_wrong = all;
  one_wrong[0] = 0;
  const Interval one = PairedDifference(one_wrong, all, document, 1.0 / 3);
  EXPECT_GT(one.high - one.low, 2 * t / 77);
}

TEST(IntervalsTest, OneDocumentSaysNothingOfOthers) {
  const std::vector<uint8_t> all(10, 1);
  const Interval share = ShareRight(all, Documents(1, 10), 0);
  EXPECT_EQ(share.value, 1.0);
  EXPECT_EQ(share.low, 0.0);
  EXPECT_EQ(share.high, 1.0);
  const Interval difference = PairedDifference(all, all, Documents(1, 10), 0);
  EXPECT_EQ(difference.low, -1.0);
  EXPECT_EQ(difference.high, 1.0);
}

// Experiments out of 1000 whose intervals cover the truth: documents of twenty samples, each
// document with a share of its own (mean 0.5), and the same asked again less often right.
struct Coverage {
  int share = 0;
  int difference = 0;
};
Coverage CoveredOf1000(uint32_t documents) {
  constexpr double kKept = 0.8;
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform;
  const std::vector<uint32_t> document = Documents(documents, 20);
  Coverage covered;
  for (int experiment = 0; experiment < 1000; ++experiment) {
    std::vector<uint8_t> full;
    std::vector<uint8_t> kept;
    for (uint32_t d = 0; d < documents; ++d) {
      const double share = uniform(random);
      for (int s = 0; s < 20; ++s) {
        full.push_back(uniform(random) < share ? 1 : 0);
        kept.push_back(full.back() != 0 && uniform(random) < kKept ? 1 : 0);
      }
    }
    const std::vector<std::span<const uint8_t>> cells = {full, kept};
    const double rho = IntraclassCorrelation(cells, document);
    const Interval share = ShareRight(full, document, rho);
    if (share.low <= 0.5 && 0.5 <= share.high) ++covered.share;
    const Interval difference = PairedDifference(kept, full, document, rho);
    const double truth = 0.5 * (kKept - 1);
    if (difference.low <= truth && truth <= difference.high) ++covered.difference;
  }
  return covered;
}

// With clusters ignored about 530 of the shares would be covered.
TEST(IntervalsTest, CoverTheTruthUnderClusters) {
  const Coverage covered = CoveredOf1000(50);
  EXPECT_GE(covered.share, 930);
  EXPECT_LE(covered.share, 975);  // Nor is the interval wider than it says.
  EXPECT_GE(covered.difference, 930);
}

// Student's t matters here: with the normal quantile about 890 of the shares.
TEST(IntervalsTest, CoverTheTruthWithFewDocuments) {
  const Coverage covered = CoveredOf1000(5);
  EXPECT_GE(covered.share, 930);
  EXPECT_GE(covered.difference, 930);
}

}  // namespace
}  // namespace kvtier
