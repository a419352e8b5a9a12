#include "compressor/rule_ranking.h"

#include <algorithm>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr SelectionRule kRules[] = {SelectionRule::kExact, SelectionRule::kPerHead,
                                    SelectionRule::kWholeHeads, SelectionRule::kKvpress};

BandEdges Edges(absl::string_view text) { return BandEdges::Parse(text).value(); }

BandAssignment Assign(const ScoreTable& scores, const BandEdges& edges, SelectionRule rule,
                      bool system_prompt = true) {
  absl::StatusOr<BandAssignment> bands = AssignBandsByRule(scores, edges, rule, system_prompt);
  EXPECT_THAT(bands, IsOk());
  return *std::move(bands);
}

ScoreTable RandomTable(std::mt19937_64& random, uint64_t tokens, int levels) {
  ScoreTable table = ScoreTable::Create(static_cast<uint32_t>(RandomUniform(random, 1, 3)),
                                        static_cast<uint32_t>(RandomUniform(random, 1, 4)), tokens);
  for (float& score : table.log_scores) {
    score = levels > 0 ? 1 - 0.5f * static_cast<float>(random() % levels)
                       : 1 - static_cast<float>(random() % 100'000'007) * 1e-7f;
    if (random() % 50 == 0) score = -kInfinity;  // A score of 0, as kvpress gives.
  }
  return table;
}

uint64_t KeptUpTo(const BandAssignment& bands, uint32_t band) {
  return static_cast<uint64_t>(
      std::count_if(bands.band.begin(), bands.band.end(), [band](uint8_t b) { return b <= band; }));
}

TEST(RuleRankingTest, EqualsTheSortingTwinAndKeepsWhatTheRuleCounts) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  const char* edge_texts[] = {"0.1,0.2,0.3,0.4,0.6,1", "1", "0.000001,0.5,0.500001,1", "0.99,1"};
  for (int round = 0; round < 120; ++round) {
    const int levels[] = {0, 1, 2, 7};
    const ScoreTable scores = RandomTable(random, RandomUniform(random, 0, 40), levels[round % 4]);
    const uint64_t heads = uint64_t{scores.layers} * scores.kv_heads;
    for (const char* text : edge_texts) {
      const BandEdges edges = Edges(text);
      for (const SelectionRule rule : kRules) {
        for (const bool system_prompt : {true, false}) {
          SCOPED_TRACE(absl::StrCat("round ", round, ", edges ", text, ", rule ",
                                    static_cast<int>(rule), ", system ", system_prompt));
          const BandAssignment fast = Assign(scores, edges, rule, system_prompt);
          KVTIER_ASSERT_OK_AND_ASSIGN(
              const BandAssignment plain,
              AssignBandsByRuleReference(scores, edges, rule, system_prompt));
          ASSERT_EQ(fast.band, plain.band);
          ASSERT_EQ(fast.thresholds, plain.thresholds);
          for (uint32_t b = 0; b < edges.size(); ++b) {
            ASSERT_NEAR(fast.score_mass[b], plain.score_mass[b], 1e-9 * (1 + plain.score_mass[b]));
            ASSERT_EQ(KeptUpTo(fast, b),
                      KeptPairs(rule, edges.edge(BandIndex(b)), heads, scores.tokens));
          }
        }
      }
    }
  }
}

TEST(RuleRankingTest, KeptSetsAreNestedAndABandDoesNotDependOnOtherEdges) {
  std::mt19937_64 random(TestSeed());
  for (const SelectionRule rule : kRules) {
    const ScoreTable scores = RandomTable(random, 61, /*levels=*/5);
    const BandEdges edges = BandEdges::Default();
    const BandAssignment all = Assign(scores, edges, rule);
    for (uint32_t b = 0; b + 1 < edges.size(); ++b) {
      const BandAssignment direct =
          Assign(scores, Edges(absl::StrCat(edges.edge(BandIndex(b)).ToString(), ",1")), rule);
      for (uint64_t i = 0; i < scores.pairs(); ++i) {
        ASSERT_EQ(all.band[i] <= b, direct.band[i] == 0) << "band " << b << ", pair " << i;
      }
    }
  }
}

// The example of kvzip_golden_test.cc.
TEST(RuleRankingTest, GivesTheSelectionsOfTheGoldenExample) {
  const ScoreTable scores = {1,
                             2,
                             5,
                             {-1.607043f, -2.195023f, -2.928533f, -2.636807f, -3.429202f,
                              -1.550736f, -2.086703f, -2.791430f, -2.280829f, -3.017460f}};
  const auto kept = [&](SelectionRule rule, const char* ratio) {
    const BandAssignment bands = Assign(scores, Edges(absl::StrCat(ratio, ",1")), rule);
    std::set<size_t> pairs;
    for (size_t i = 0; i < bands.band.size(); ++i) {
      if (bands.band[i] == 0) pairs.insert(i);
    }
    return pairs;
  };
  EXPECT_THAT(kept(SelectionRule::kPerHead, "0.3"), ElementsAre(0, 5));
  EXPECT_THAT(kept(SelectionRule::kPerHead, "0.5"), ElementsAre(0, 1, 5, 6));
  EXPECT_THAT(kept(SelectionRule::kPerHead, "0.9"), ElementsAre(0, 1, 2, 3, 5, 6, 7, 8));
  EXPECT_THAT(kept(SelectionRule::kWholeHeads, "0.499999"), ElementsAre());
  EXPECT_THAT(kept(SelectionRule::kWholeHeads, "0.5"), ElementsAre(5, 6, 7, 8, 9));
  EXPECT_THAT(kept(SelectionRule::kKvpress, "0.25"), ElementsAre(0, 5, 6));  // 7.5 go: 7
  const BandAssignment heads = Assign(scores, Edges("0.5,1"), SelectionRule::kWholeHeads);
  EXPECT_THAT(heads.thresholds, ElementsAre(-1.550736f, -1.607043f));
  const BandAssignment uniform = Assign(scores, Edges("0.4,1"), SelectionRule::kPerHead);
  EXPECT_THAT(uniform.thresholds, ElementsAre(-2.195023f, -3.429202f));
}

TEST(RuleRankingTest, TiedHeadsGoByIndexAndAreNeverCut) {
  const ScoreTable scores = ScoreTable::Create(2, 3, 7);  // All equal.
  const BandAssignment bands =
      Assign(scores, Edges("0.2,0.5,1"), SelectionRule::kWholeHeads, /*system_prompt=*/false);
  for (uint64_t head = 0; head < 6; ++head) {
    for (uint64_t token = 0; token < 7; ++token) {
      EXPECT_EQ(bands.band[head * 7 + token], head < 1 ? 0 : head < 3 ? 1 : 2);
    }
  }
}

TEST(RuleRankingTest, TheFirstTokenComesFirstInEveryHeadWhereThatIsTheRule) {
  // First tokens have the lowest scores.
  const ScoreTable scores = {1, 2, 4, {-9, -1, -2, -3, -8, -1, -2, -3}};
  const BandEdges edges = Edges("0.25,0.5,1");
  EXPECT_THAT(Assign(scores, edges, SelectionRule::kPerHead, false).band,
              ElementsAre(0, 1, 2, 2, 0, 1, 2, 2));
  EXPECT_THAT(Assign(scores, edges, SelectionRule::kPerHead, true).band,
              ElementsAre(2, 0, 1, 2, 2, 0, 1, 2));
  EXPECT_THAT(Assign(scores, edges, SelectionRule::kPerHead, false).thresholds,
              ElementsAre(-9, -1, -3));
  EXPECT_EQ(Assign(scores, edges, SelectionRule::kKvpress, false).band,
            Assign(scores, edges, SelectionRule::kKvpress, true).band);
}

TEST(RuleRankingTest, RefusesScoresThatCannotBeRanked) {
  ScoreTable scores = ScoreTable::Create(2, 3, 10);
  scores.at(1, 2, 4) = std::numeric_limits<float>::quiet_NaN();
  for (const SelectionRule rule : kRules) {
    for (auto* assign : {&AssignBandsByRule, &AssignBandsByRuleReference}) {
      EXPECT_THAT(assign(scores, BandEdges::Default(), rule, true),
                  StatusIs(absl::StatusCode::kInvalidArgument,
                           HasSubstr("layer 1, head 2, token 4 is nan")));
    }
  }
}

TEST(RuleRankingTest, RefusesTheRuleThatOnlyRebandingFollows) {
  for (auto* assign : {&AssignBandsByRule, &AssignBandsByRuleReference}) {
    EXPECT_THAT(
        assign(ScoreTable::Create(1, 1, 4), BandEdges::Default(), SelectionRule::kPerLayer, true),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rebanding")));
  }
}

TEST(RankingCutsTest, RefusesCutsThatDoNotAscendToAllPairs) {
  const ScoreTable scores = ScoreTable::Create(1, 1, 10);
  const auto refused = [&](const std::vector<uint64_t>& ends) {
    EXPECT_THAT(AssignBandsAt(scores, ends, false),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rank ends")));
  };
  refused({});
  refused({5});
  refused({5, 11});
  refused({6, 5, 10});
  refused(std::vector<uint64_t>(17, 10));
  KVTIER_EXPECT_OK(AssignBandsAt(scores, std::vector<uint64_t>{0, 0, 10, 10}, false));
}

}  // namespace
}  // namespace kvtier
