#include "compressor/ranking.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <random>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

ScoreTable MakeTable(uint32_t layers, uint32_t kv_heads, std::vector<float> scores) {
  const uint64_t tokens = scores.size() / layers / kv_heads;
  return {layers, kv_heads, tokens, std::move(scores)};
}

// `levels` distinct scores, so that most of them are tied; 0 for no limit.
ScoreTable RandomTable(std::mt19937_64& random, uint32_t layers, uint32_t kv_heads, uint64_t tokens,
                       int levels) {
  ScoreTable table = ScoreTable::Create(layers, kv_heads, tokens);
  for (float& score : table.log_scores) {
    score = levels > 0 ? -0.25f * static_cast<float>(random() % levels)
                       : -static_cast<float>(random() % 100'000'007) * 1e-7f;
  }
  return table;
}

std::vector<uint64_t> PairsUpToBand(const BandAssignment& assignment, uint32_t band) {
  std::vector<uint64_t> pairs;
  for (uint64_t i = 0; i < assignment.band.size(); ++i) {
    if (assignment.band[i] <= band) pairs.push_back(i);
  }
  return pairs;
}

BandEdges Edges(absl::string_view text) {
  absl::StatusOr<BandEdges> edges = BandEdges::Parse(text);
  EXPECT_THAT(edges, IsOk());
  return *edges;
}

BandAssignment Assign(const ScoreTable& scores, const BandEdges& edges,
                      bool first_token_first = false) {
  absl::StatusOr<BandAssignment> assignment = AssignBands(scores, edges, first_token_first);
  EXPECT_THAT(assignment, IsOk());
  return *std::move(assignment);
}

void ExpectSame(const BandAssignment& fast, const BandAssignment& plain) {
  EXPECT_EQ(fast.band, plain.band);
  EXPECT_EQ(fast.thresholds, plain.thresholds);
  ASSERT_EQ(fast.score_mass.size(), plain.score_mass.size());
  for (size_t b = 0; b < fast.score_mass.size(); ++b) {
    // The same numbers in another order.
    EXPECT_NEAR(fast.score_mass[b], plain.score_mass[b], 1e-9 * (1 + plain.score_mass[b]));
  }
}

// The scores of kvzip_golden_test.cc's example.
TEST(RankingTest, GivesTheBandsOfTheGoldenExample) {
  const ScoreTable scores =
      MakeTable(1, 2,
                {-1.607043f, -2.195023f, -2.928533f, -2.636807f, -3.429202f,  //
                 -1.550736f, -2.086703f, -2.791430f, -2.280829f, -3.017460f});
  const BandAssignment bands = Assign(scores, BandEdges::Default());
  EXPECT_THAT(bands.band, ElementsAre(1, 3, 5, 4, 5, 0, 2, 5, 4, 5));
  EXPECT_THAT(bands.thresholds,
              ElementsAre(-1.550736f, -1.607043f, -2.086703f, -2.195023f, -2.636807f, -3.429202f));
  EXPECT_NEAR(bands.score_mass[0], 0.212092, 1e-6);
  EXPECT_NEAR(bands.score_mass[4], 0.102199 + 0.071589, 1e-6);
}

TEST(RankingTest, EqualsTheSortingTwinOnRandomAndTiedScores) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const int levels[] = {0, 1, 2, 5, 40};
    const ScoreTable scores =
        RandomTable(random, RandomUniform(random, 1, 3), RandomUniform(random, 1, 3),
                    RandomUniform(random, 0, 70), levels[round % 5]);
    const char* edges[] = {
        "0.1,0.2,0.3,0.4,0.6,1", "1", "0.000001,0.5,0.500001,1", "0.99,1",
        "0.01,0.02,0.03,0.04,0.05,0.06,0.07,0.08,0.09,0.1,0.2,0.3,0.4,0.5,0.9,1"};
    for (const char* text : edges) {
      for (bool first_token_first : {false, true}) {
        SCOPED_TRACE(absl::StrCat("round ", round, ", edges ", text));
        KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment plain,
                                    AssignBandsReference(scores, Edges(text), first_token_first));
        ExpectSame(Assign(scores, Edges(text), first_token_first), plain);
      }
    }
  }
}

TEST(RankingTest, EqualsTheSortingTwinOnNeighbouringFloats) {
  std::mt19937_64 random(TestSeed());
  ScoreTable scores = ScoreTable::Create(2, 2, 500);
  // Only the last bits differ: the third digit of the radix select decides.
  for (float& score : scores.log_scores) {
    const auto ulps = static_cast<uint32_t>(RandomUniform(random, 0, 300));
    score = -std::bit_cast<float>(std::bit_cast<uint32_t>(1.5f) + ulps);
  }
  scores.log_scores[7] = 0.0f;
  scores.log_scores[3] = -0.0f;  // Equal to 0: the lower index wins.
  scores.log_scores[11] = -kInfinity;
  scores.log_scores[12] = -std::numeric_limits<float>::denorm_min();
  scores.log_scores[13] = 1.25f;  // KVzip+ scores may be positive.
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment plain,
                              AssignBandsReference(scores, BandEdges::Default(), false));
  ExpectSame(Assign(scores, BandEdges::Default()), plain);
  const BandAssignment finest = Assign(scores, Edges("0.0005,0.001,0.0015,1"));
  EXPECT_EQ(finest.band[13], 0);
  EXPECT_EQ(finest.band[3], 1);
  EXPECT_EQ(finest.band[7], 2);
}

TEST(RankingTest, KeepsExactlyKUnderMassiveTies) {
  std::mt19937_64 random(TestSeed());
  for (uint64_t tokens : {1, 7, 10, 333}) {
    const ScoreTable scores = RandomTable(random, 3, 2, tokens, /*levels=*/2);
    const BandEdges edges = BandEdges::Default();
    const BandAssignment assignment = Assign(scores, edges);
    for (uint32_t b = 0; b < edges.size(); ++b) {
      EXPECT_EQ(PairsUpToBand(assignment, b).size(), edges.edge(BandIndex(b)).Of(scores.pairs()));
    }
  }
}

TEST(RankingTest, KeepsTheLowestIndicesIfAllScoresAreEqual) {
  const ScoreTable scores = MakeTable(2, 2, std::vector<float>(40, -1.0f));
  const BandAssignment assignment = Assign(scores, BandEdges::Default());
  for (uint64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(assignment.band[i], BandEdges::Default().BandOfRank(i, 40).value()) << i;
  }
}

TEST(RankingTest, UnionOfBandsIsTheDirectSelectionAtThatEdge) {
  std::mt19937_64 random(TestSeed());
  for (int levels : {0, 3}) {
    const ScoreTable scores = RandomTable(random, 4, 3, 101, levels);
    const BandEdges edges = BandEdges::Default();
    const BandAssignment banded = Assign(scores, edges);
    std::vector<uint64_t> smaller;
    for (uint32_t b = 0; b < edges.size(); ++b) {
      // One edge alone, as if the cache had been compressed to that ratio directly.
      const BandAssignment direct =
          Assign(scores, b + 1 < edges.size()
                             ? Edges(absl::StrCat(edges.edge(BandIndex(b)).ToString(), ",1"))
                             : Edges("1"));
      const std::vector<uint64_t> kept = PairsUpToBand(banded, b);
      EXPECT_EQ(kept, PairsUpToBand(direct, 0)) << "band " << b;
      EXPECT_TRUE(std::includes(kept.begin(), kept.end(), smaller.begin(), smaller.end()));
      smaller = kept;
    }
  }
}

TEST(RankingTest, RanksTheFirstTokenOfEachHeadFirstWhereThereIsNoSystemPrompt) {
  // The first tokens have the lowest scores of all.
  const ScoreTable scores = MakeTable(1, 2, {-9, -1, -2, -3, -4, -8, -1, -2, -3, -4});
  const BandAssignment assignment =
      Assign(scores, BandEdges::Default(), /*first_token_first=*/true);
  EXPECT_THAT(assignment.band, ElementsAre(0, 2, 4, 5, 5, 1, 3, 4, 5, 5));
  // Forced rows keep their own scores.
  EXPECT_THAT(assignment.thresholds, ElementsAre(-9, -8, -1, -1, -2, -4));
}

TEST(RankingTest, GivesEmptyBandsAnInfiniteThresholdAndNoMass) {
  const ScoreTable scores = MakeTable(1, 1, {-1, -2});
  const BandAssignment assignment = Assign(scores, BandEdges::Default());
  EXPECT_THAT(assignment.band, ElementsAre(4, 5));
  EXPECT_THAT(assignment.thresholds,
              ElementsAre(kInfinity, kInfinity, kInfinity, kInfinity, -1, -2));
  EXPECT_EQ(assignment.score_mass[0], 0.0);
  EXPECT_THAT(Assign(ScoreTable::Create(2, 2, 0), Edges("1")).thresholds, ElementsAre(kInfinity));
}

TEST(RankingTest, RefusesScoresThatCannotBeRanked) {
  ScoreTable scores = ScoreTable::Create(2, 3, 10);
  scores.at(1, 2, 4) = std::numeric_limits<float>::quiet_NaN();
  for (auto* assign : {&AssignBands, &AssignBandsReference}) {
    EXPECT_THAT(
        assign(scores, BandEdges::Default(), false),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 1, head 2, token 4 is nan")));
  }
  scores.at(1, 2, 4) = kInfinity;
  EXPECT_THAT(AssignBands(scores, BandEdges::Default(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("inf")));
  scores.log_scores.pop_back();
  EXPECT_THAT(AssignBands(scores, BandEdges::Default(), false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 layers x 3 heads")));
}

}  // namespace
}  // namespace kvtier
