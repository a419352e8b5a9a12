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
      EXPECT_EQ(kept, BandEdges::Default().RankEnd(BandIndex(b), 3 * 4 * 101));
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
    EXPECT_EQ(kept, BandEdges::Default().RankEnd(BandIndex(b), scores.pairs()));
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

}  // namespace
}  // namespace kvtier
