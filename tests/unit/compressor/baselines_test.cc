#include "compressor/baselines.h"

#include <cmath>
#include <set>

#include "base/status_matchers.h"
#include "compressor/dense_spans.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;

Geometry MakeGeometry(uint32_t layers, uint32_t kv_heads) {
  Geometry geometry;
  geometry.kv_heads = kv_heads;
  geometry.head_dim = 8;
  geometry.layers.assign(layers, LayerKind::kGlobal);
  return geometry;
}

// [bands][layers] ranked pairs.
std::vector<std::vector<uint64_t>> CountPerLayer(const ScoreTable& scores, bool first_token_first) {
  absl::StatusOr<BandAssignment> bands =
      AssignBands(scores, BandEdges::Default(), first_token_first);
  KVTIER_CHECK_OK(bands);
  std::vector<std::vector<uint64_t>> counts(6, std::vector<uint64_t>(scores.layers));
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    ++counts[bands->band[i]][i / (scores.kv_heads * scores.tokens)];
  }
  return counts;
}

TEST(RandomEvictionTest, KeepsExactlyKOfEveryKindOfSeed) {
  const Geometry geometry = MakeGeometry(3, 4);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const ScoreTable scores = RandomScores(geometry, 101, seed);
    const auto counts = CountPerLayer(scores, /*first_token_first=*/seed % 2 == 0);
    uint64_t kept = 0;
    for (uint32_t b = 0; b < 6; ++b) {
      for (uint64_t count : counts[b]) kept += count;
      EXPECT_EQ(kept, BandEdges::Default().edge(BandIndex(b)).Of(3 * 4 * 101));
    }
  }
}

TEST(RandomEvictionTest, IsRepeatableForASeedAndSpreadOverTheContext) {
  const Geometry geometry = MakeGeometry(2, 2);
  const ScoreTable scores = RandomScores(geometry, 5000, 7);
  EXPECT_EQ(scores.log_scores, RandomScores(geometry, 5000, 7).log_scores);
  EXPECT_NE(scores.log_scores, RandomScores(geometry, 5000, 8).log_scores);
  // 2,000 of 20,000 pairs in band 0: 500 +- 5 * sqrt(500) in each of four heads.
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment bands,
                              AssignBands(scores, BandEdges::Default(), false));
  for (int head = 0; head < 4; ++head) {
    const auto begin = bands.band.begin() + head * 5000;
    EXPECT_NEAR(std::count(begin, begin + 5000, 0), 500, 112);
  }
}

TEST(SnapKvTest, PoolsByTheMaximumOfTheNeighbours) {
  const std::vector<float> values = {1, 0, 0, 0, 0, 5, 0, 0, 0, 0, 2};
  EXPECT_THAT(MaxPool(values, 7), ElementsAre(1, 1, 5, 5, 5, 5, 5, 5, 5, 2, 2));
  EXPECT_THAT(MaxPool(values, 1), ElementsAre(1, 0, 0, 0, 0, 5, 0, 0, 0, 0, 2));
  EXPECT_TRUE(MaxPool({}, 7).empty());
}

TEST(SnapKvTest, RanksInsideEachLayer) {
  ScoreTable scores = ScoreTable::Create(2, 2, 3);
  scores.log_scores = {0.1f, 0.5f, 0.1f, 0.2f, 0.9f, 0.1f, 7, 7, 7, 7, 7, 7};
  RankInsideLayers(scores);
  EXPECT_THAT(scores.log_scores, ElementsAre(-3, -1, -4, -2, 0, -5, 0, -1, -2, -3, -4, -5));
}

TEST(SnapKvTest, KeepsTheSameNumberInEveryLayerAndExactlyKInAll) {
  TinyModelOptions options;
  options.layers = 3;
  const TestModel tiny = MakeTestModel(options);
  std::vector<uint32_t> ids = tiny.model->profile().prefix;
  const std::vector<uint32_t> context = RandomTokens(101, /*seed=*/1);
  ids.insert(ids.end(), context.begin(), context.end());
  const DenseCache cache = PrefillForTest(*tiny.model, ids, DType::kBf16);
  const std::vector<std::byte> before = CacheBytes(cache);
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*tiny.model, 64));
  const std::vector<uint32_t> question = tiny.model->profile().WrapQuery(RandomTokens(9, 2));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ScoreTable scores,
      SnapKvScores(*tiny.model, cache, tiny.model->profile().prefix.size(), question, scratch));
  EXPECT_EQ(CacheBytes(cache), before);
  const auto counts = CountPerLayer(scores, false);
  uint64_t kept = 0;
  std::vector<uint64_t> per_layer(3);
  for (uint32_t b = 0; b < 6; ++b) {
    for (uint32_t layer = 0; layer < 3; ++layer) {
      kept += counts[b][layer];
      per_layer[layer] += counts[b][layer];
    }
    EXPECT_EQ(kept, BandEdges::Default().edge(BandIndex(b)).Of(scores.pairs()));
    EXPECT_LE(*std::max_element(per_layer.begin(), per_layer.end()) -
                  *std::min_element(per_layer.begin(), per_layer.end()),
              1u);
  }
}

// The vote itself, term by term from the queries and keys of a Forward of our own.
TEST(SnapKvTest, VotesWithTheMeanAttentionOfTheQuestionsRows) {
  const TestModel tiny = MakeTestModel();
  const ModelConfig& config = tiny.model->config();
  const std::vector<uint32_t> context = RandomTokens(30, /*seed=*/3);
  const DenseCache cache = PrefillForTest(*tiny.model, context, DType::kF32);
  const std::vector<uint32_t> question = RandomTokens(6, /*seed=*/4);
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*tiny.model, 16));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable scores,
                              SnapKvScores(*tiny.model, cache, 0, question, scratch));

  ScoreTable expected = ScoreTable::Create(2, 2, 30);
  const DenseSpans spans(cache);
  KVTIER_ASSERT_OK_AND_ASSIGN(DenseCache tail,
                              DenseCache::Create(tiny.model->backend(), cache.geometry(), 6));
  ForwardPlan plan;
  plan.spans = [&](int64_t layer) { return spans.layer(layer); };
  plan.tail = &tail;
  plan.first_position = 30;
  plan.on_queries = [&](int64_t layer, TensorView q, KvLayerView own) {
    const int64_t dim = config.head_dim, group = config.q_heads / config.kv_heads;
    const auto* queries = static_cast<const float*>(q.data);
    const auto* keys = static_cast<const float*>(cache.layer(layer).keys);
    const auto* own_keys = static_cast<const float*>(own.keys);
    for (int64_t h = 0; h < config.kv_heads; ++h) {
      std::vector<float> mean(30);
      for (int64_t row = 0; row < 6 * group; ++row) {
        const int64_t i = row / group;
        const float* query = queries + (i * config.q_heads + h * group + row % group) * dim;
        std::vector<double> weights;
        for (int64_t j = 0; j <= 30 + i; ++j) {
          const float* key = j < 30 ? keys + (h * cache.capacity() + j) * dim
                                    : own_keys + (h * own.capacity + j - 30) * dim;
          double dot = 0;
          for (int64_t d = 0; d < dim; ++d) dot += double{query[d]} * key[d];
          weights.push_back(std::exp(dot / std::sqrt(double(dim))));
        }
        double total = 0;
        for (double weight : weights) total += weight;
        for (int j = 0; j < 30; ++j) mean[j] += weights[j] / total / (6.0 * group);
      }
      const std::vector<float> pooled = MaxPool(mean, kSnapKvPoolKernel);
      std::copy(pooled.begin(), pooled.end(), &expected.at(layer, h, 0));
    }
    return absl::OkStatus();
  };
  KVTIER_ASSERT_OK(Forward(*tiny.model, question, plan, scratch, {}));
  // Neighbours share their pooled maximum up to the last bit only if they are the same number on
  // both sides, so compare what the ranks say about clearly different scores.
  for (uint32_t layer = 0; layer < 2; ++layer) {
    for (uint64_t a = 0; a < 60; ++a) {
      for (uint64_t b = 0; b < 60; ++b) {
        const float of_a = expected.log_scores[layer * 60 + a];
        const float of_b = expected.log_scores[layer * 60 + b];
        if (of_a <= of_b * 1.001f) continue;
        EXPECT_GT(scores.log_scores[layer * 60 + a], scores.log_scores[layer * 60 + b]);
      }
    }
  }
}

TEST(SnapKvTest, RefusesAnEmptyQuestion) {
  const TestModel tiny = MakeTestModel();
  const DenseCache cache = PrefillForTest(*tiny.model, RandomTokens(5, 5), DType::kF32);
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*tiny.model, 4));
  EXPECT_THAT(SnapKvScores(*tiny.model, cache, 0, {}, scratch),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

AttentionVotes MakeVotes(uint32_t layers, uint32_t kv_heads, std::vector<double> sums) {
  AttentionVotes votes;
  votes.layers = layers;
  votes.kv_heads = kv_heads;
  votes.tokens = sums.size() / layers / kv_heads;
  votes.sums = std::move(sums);
  return votes;
}

AttentionVotes RandomVotes(uint32_t layers, uint32_t kv_heads, uint64_t tokens, uint64_t seed) {
  std::vector<double> sums;
  for (float score : RandomScores(MakeGeometry(layers, kv_heads), tokens, seed).log_scores) {
    sums.push_back(-score);
  }
  return MakeVotes(layers, kv_heads, std::move(sums));
}

TEST(SinkRecentTest, KeepsTheFirstFourOfTheSequenceThenTheLast) {
  const ScoreTable no_system = SinkRecentScores(MakeGeometry(1, 1), /*system_tokens=*/0, 7);
  EXPECT_THAT(no_system.log_scores, ElementsAre(0, 0, 0, 0, -3, -2, -1));
  const ScoreTable some = SinkRecentScores(MakeGeometry(1, 2), /*system_tokens=*/3, 3);
  EXPECT_THAT(some.log_scores, ElementsAre(0, -2, -1, 0, -2, -1));
  const ScoreTable enough = SinkRecentScores(MakeGeometry(1, 1), /*system_tokens=*/4, 3);
  EXPECT_THAT(enough.log_scores, ElementsAre(-3, -2, -1));
}

TEST(PyramidKvTest, BudgetsFallLinearlyAndAverageToTheRatio) {
  for (double ratio : {0.02, 0.1, 0.3, 0.5, 0.512, 0.6, 0.9, 1.0}) {
    double sum = 0;
    for (uint32_t layer = 0; layer < 6; ++layer) {
      const double kept = PyramidLayerRatio(layer, 6, ratio);
      EXPECT_GE(kept, 0);
      EXPECT_LE(kept, 1 + 1e-12);
      const double least = PyramidRatioOf(layer, 6, kept);
      // Where a layer keeps everything, it did so at smaller ratios too.
      EXPECT_NEAR(kept < 1 - 1e-12 ? least : PyramidLayerRatio(layer, 6, least),
                  kept < 1 - 1e-12 ? ratio : 1, 1e-9)
          << "layer " << layer;
      EXPECT_LE(least, ratio + 1e-12);
      EXPECT_LE(kept, PyramidLayerRatio(layer > 0 ? layer - 1 : 0, 6, ratio) + 1e-12);
      sum += kept;
    }
    EXPECT_NEAR(sum / 6, ratio, 1e-12);
  }
  // The paper's shape while nothing is capped: the last layer has a twentieth of the mean.
  EXPECT_NEAR(PyramidLayerRatio(5, 6, 0.3), 0.015, 1e-12);
  EXPECT_NEAR(PyramidLayerRatio(0, 6, 0.3), 0.585, 1e-12);
  EXPECT_EQ(PyramidLayerRatio(0, 1, 0.3), 0.3);  // A single layer has no slope.
  EXPECT_EQ(PyramidRatioOf(0, 1, 0.3), 0.3);
}

TEST(PyramidKvTest, KeepsEachLayersShareInSnapKvsOrder) {
  const AttentionVotes votes = RandomVotes(4, 2, 500, /*seed=*/5);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable pyramid, PyramidKvScores(votes));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable snapkv, SnapKvScores(votes));
  const auto counts = CountPerLayer(pyramid, /*first_token_first=*/false);
  std::vector<double> kept(4);
  const BandEdges edges = BandEdges::Default();
  for (uint32_t b = 0; b < edges.size(); ++b) {
    for (uint32_t layer = 0; layer < 4; ++layer) {
      kept[layer] += static_cast<double>(counts[b][layer]);
      const double share = PyramidLayerRatio(layer, 4, edges.edge(BandIndex(b)).ToDouble());
      EXPECT_NEAR(kept[layer], 1000 * share, 2) << "band " << b << ", layer " << layer;
    }
  }
  for (uint64_t i = 0; i + 1 < 1000; ++i) {
    EXPECT_EQ(pyramid.log_scores[i] < pyramid.log_scores[i + 1],
              snapkv.log_scores[i] < snapkv.log_scores[i + 1]);
  }
}

TEST(H2oTest, TakesRecentTokensAndHeavyHittersInTurn) {
  // One layer of two heads, four tokens. Sums: the prefill's and the question's added.
  const AttentionVotes prefill = MakeVotes(1, 2, {9, 1, 0, 1, 0, 3, 0, 8});
  const AttentionVotes question = MakeVotes(1, 2, {0, 0, 0, 0, 0, 4, 2, 0});
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable scores, H2oScores(prefill, question));
  // Recent: (0,3) (1,3) (0,2) (1,2) ...; heavy: (0,0) 9, (1,3) 8, (1,1) 7, (1,2) 2, (0,1) 1 ...
  // In turn: (0,3) (0,0) (1,3) (1,1) (0,2) (1,2) (0,1) (1,0).
  EXPECT_THAT(scores.log_scores, ElementsAre(-1, -6, -4, 0, -7, -3, -5, -2));
}

TEST(H2oTest, KeepsTheSameNumberInEveryLayer) {
  const AttentionVotes votes = RandomVotes(3, 2, 100, /*seed=*/1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable scores, H2oScores(votes, votes));
  for (const std::vector<uint64_t>& band : CountPerLayer(scores, false)) {
    EXPECT_LE(
        *std::max_element(band.begin(), band.end()) - *std::min_element(band.begin(), band.end()),
        1u);
  }
}

TEST(BaselinesTest, RefuseMorePairsThanRanksAndVotesThatDoNotFit) {
  AttentionVotes large;  // Refused before anything is allocated, so no sums are needed.
  large.layers = 1;
  large.kv_heads = 8;
  large.tokens = kRankMax / 8 + 1;
  EXPECT_THAT(SnapKvScores(large), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(H2oScores(large, large), StatusIs(absl::StatusCode::kInvalidArgument));
  large.tokens = kRankMax / 32 + 1;
  EXPECT_THAT(PyramidKvScores(large), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(H2oScores(RandomVotes(1, 1, 3, 1), RandomVotes(1, 1, 4, 1)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace kvtier
