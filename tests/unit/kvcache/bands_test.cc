#include "kvcache/bands.h"

#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

Ratio R(double value) { return Ratio::FromDouble(value).value(); }

TEST(RatioTest, RoundsOnceToMillionths) {
  EXPECT_EQ(R(0.3).millionths(), 300'000u);
  EXPECT_EQ(R(0.1).millionths(), 100'000u);
  EXPECT_EQ(R(0.7).millionths(), 700'000u);
  EXPECT_EQ(R(1.0 / 3).millionths(), 333'333u);
  EXPECT_EQ(R(2.0 / 3).millionths(), 666'667u);
  EXPECT_EQ(R(1).millionths(), 1'000'000u);
  EXPECT_EQ(R(1e-6).millionths(), 1u);
  // 2.5 millionths lie exactly between two; the double nearest to it times a million is 2.5.
  EXPECT_EQ(R(2.5e-6).millionths(), 3u);
}

TEST(RatioTest, EveryMillionthSurvivesADouble) {
  for (uint32_t m = 1; m <= Ratio::kOne; ++m) {
    ASSERT_EQ(R(Ratio::FromMillionths(m)->ToDouble()).millionths(), m);
  }
}

TEST(RatioTest, RefusesWhatIsNoRatio) {
  for (double value :
       {std::nan(""), 0.0, -0.0, -0.5, 1e-7, 4.9e-7, 1.0000005, 1.5, 2.5, 1e300,
        std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
        std::nextafter(1.0, 2.0), std::numeric_limits<double>::denorm_min()}) {
    EXPECT_THAT(Ratio::FromDouble(value), StatusIs(absl::StatusCode::kInvalidArgument)) << value;
  }
  EXPECT_THAT(Ratio::FromMillionths(0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Ratio::FromMillionths(1'000'001), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(RatioTest, PrintsTheShortestDecimal) {
  EXPECT_EQ(R(0.3).ToString(), "0.3");
  EXPECT_EQ(R(1).ToString(), "1");
  EXPECT_EQ(R(0.000001).ToString(), "0.000001");
  EXPECT_EQ(R(0.123456).ToString(), "0.123456");
  EXPECT_EQ(R(0.1005).ToString(), "0.1005");
}

TEST(RatioTest, OfIsTheExactFloor) {
  EXPECT_EQ(R(0.3).Of(10), 3u);     // In double 0.3 * 10 is 3, but 0.7 * 10 is 7.000..01 and
  EXPECT_EQ(R(0.29).Of(100), 29u);  // 0.29 * 100 is 28.99..9.
  EXPECT_EQ(R(1).Of(0), 0u);
  const uint64_t largest = (uint64_t{1} << 44) - 1;
  EXPECT_EQ(R(1).Of(largest), largest);
  EXPECT_EQ(R(1).Of(std::numeric_limits<uint64_t>::max()), std::numeric_limits<uint64_t>::max());
  // floor(m * n / 10^6) satisfies q * 10^6 <= m * n < (q + 1) * 10^6; both sides fit 64 bits here.
  for (uint32_t m : {1u, 3u, 99'999u, 100'000u, 333'333u, 999'999u, 1'000'000u}) {
    for (uint64_t n = 0; n < 3000; ++n) {
      const uint64_t q = Ratio::FromMillionths(m)->Of(n);
      ASSERT_LE(q * Ratio::kOne, m * n);
      ASSERT_GT((q + 1) * Ratio::kOne, m * n);
    }
  }
}

TEST(BandEdgesTest, DefaultsAreThoseOfTheDesign) {
  const BandEdges edges = BandEdges::Default();
  EXPECT_EQ(edges, BandEdges::Parse("0.1,0.2,0.3,0.4,0.6,1.0").value());
  ASSERT_EQ(edges.size(), 6u);
  EXPECT_EQ(edges.edge(BandIndex(2)).Of(1000), 300u);
}

TEST(BandEdgesTest, RefusesWhatDoesNotRiseToOne) {
  for (absl::string_view text : {"", "0.5", "0.3,0.3,1", "0.4,0.3,1", "1,1", "0.1,0.9", "x,1",
                                 "0.5,1,", "0,1", "0.5,1.1", "0.5;1", "nan,1"}) {
    EXPECT_THAT(BandEdges::Parse(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
  EXPECT_THAT(BandEdges::Create({}), StatusIs(absl::StatusCode::kInvalidArgument));
  std::vector<Ratio> many;
  for (uint32_t i = 1; i <= limits::kBandsMax; ++i) {
    many.push_back(Ratio::FromMillionths(i).value());
  }
  many.back() = Ratio();
  KVTIER_EXPECT_OK(BandEdges::Create(many));
  many.insert(many.begin() + 1, Ratio::FromMillionths(1).value());
  EXPECT_THAT(BandEdges::Create(many),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kBandsMax")));
}

// Every rank is in exactly one band, and BandOfRank agrees with the ranges.
void ExpectPartition(const BandEdges& edges, uint64_t pairs) {
  uint64_t rank = 0;
  for (uint32_t b = 0; b < edges.size(); ++b) {
    const uint64_t end = edges.edge(BandIndex(b)).Of(pairs);
    ASSERT_GE(end, rank);
    for (; rank < end; ++rank) ASSERT_EQ(edges.BandOfRank(rank, pairs), BandIndex(b));
  }
  ASSERT_EQ(rank, pairs);
}

TEST(BandEdgesTest, BandsPartitionAllRanksForEveryCount) {
  for (uint64_t pairs = 0; pairs <= 300; ++pairs) ExpectPartition(BandEdges::Default(), pairs);
}

TEST(BandEdgesTest, BandsPartitionAllRanksForRandomEdges) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<Ratio> list = {Ratio()};
    for (uint64_t i = RandomUniform(random, 0, limits::kBandsMax - 1); i > 0; --i) {
      list.push_back(
          Ratio::FromMillionths(static_cast<uint32_t>(RandomUniform(random, 1, Ratio::kOne)))
              .value());
    }
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
    ExpectPartition(BandEdges::Create(list).value(), RandomUniform(random, 0, 2000));
  }
}

TEST(BandEdgesTest, MayEndBelowOneWhereThatIsAsked) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandEdges edges, BandEdges::ParseTruncated("0.1,0.45"));
  EXPECT_EQ(edges.last().ToString(), "0.45");
  EXPECT_FALSE(edges.whole());
  EXPECT_TRUE(BandEdges::Default().whole());
  EXPECT_EQ(edges.BandOfRank(44, 100), BandIndex(1));
  EXPECT_EQ(BandEdges::ParseTruncated("0.1,1").value(), BandEdges::Parse("0.1,1").value());
  EXPECT_THAT(BandEdges::Parse("0.1,0.45"), StatusIs(absl::StatusCode::kInvalidArgument));
  for (const char* text : {"", "0", "0.3,0.2", "0.3,0.3", "1.5"}) {
    EXPECT_THAT(BandEdges::ParseTruncated(text), StatusIs(absl::StatusCode::kInvalidArgument))
        << text;
  }
}

TEST(BandEdgesDeathTest, BandOfRankRequiresARankThatExists) {
  EXPECT_DEATH(BandEdges::Default().BandOfRank(10, 10), "rank < last");
}

struct ChooseCase {
  uint32_t resident;
  double ratio;
  double min_ratio;
  int bands;  // 0: NOT_FOUND
};

TEST(ChooseBandsTest, Table) {
  const BandEdges edges = BandEdges::Default();  // 0.1 0.2 0.3 0.4 0.6 1
  for (const ChooseCase& c : std::initializer_list<ChooseCase>{
           {6, 0.3, 0.3, 3},       // An edge exactly.
           {6, 0.300001, 0.3, 4},  // Just above an edge: the next.
           {6, 0.25, 0.1, 3},
           {6, 0.01, 0.01, 1},  // Below the first edge: band 0.
           {6, 1.0, 1.0, 6},
           {6, 0.7, 0.7, 6},
           {3, 0.3, 0.1, 3},
           {3, 0.4, 0.1, 3},   // Degraded: the highest resident edge, 0.3.
           {3, 0.4, 0.3, 3},   // ... which is just enough,
           {3, 0.4, 0.31, 0},  // ... or not.
           {3, 1.0, 0.31, 0},
           {1, 0.1, 0.1, 1},
           {1, 0.2, 0.2, 0},
           {0, 0.3, 0.000001, 0},
       }) {
    SCOPED_TRACE(absl::StrCat("resident ", c.resident, " ratio ", c.ratio, " min ", c.min_ratio));
    const auto chosen = ChooseBands(edges.edges(), c.resident, R(c.ratio), R(c.min_ratio));
    if (c.bands == 0) {
      EXPECT_THAT(chosen, StatusIs(absl::StatusCode::kNotFound, ""));
    } else {
      EXPECT_THAT(chosen, IsOkAndHolds(static_cast<uint32_t>(c.bands)));
    }
  }
}

TEST(ChooseBandsTest, RefusesContradictions) {
  const BandEdges edges = BandEdges::Default();
  EXPECT_THAT(ChooseBands(edges.edges(), 6, R(0.3), R(0.4)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ChooseBands(edges.edges(), 7, R(0.3), R(0.3)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ChooseBands({}, 0, R(0.3), R(0.3)), StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace kvtier
