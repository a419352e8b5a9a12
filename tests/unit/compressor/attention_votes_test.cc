#include "compressor/attention_votes.h"

#include <random>

#include "base/status_matchers.h"
#include "compressor/dense_spans.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

// Host memory in the shape of a layer, with room for `spare` rows more.
struct Keys {
  std::vector<float> floats;
  KvLayerView view;
};
Keys RandomKeys(int64_t kv_heads, int64_t rows, int64_t dim, int64_t spare, uint64_t seed) {
  Keys keys;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  keys.floats.resize(kv_heads * (rows + spare) * dim);
  for (float& value : keys.floats) value = normal(random);
  keys.view.keys = keys.floats.data();
  keys.view.dtype = DType::kF32;
  keys.view.kv_heads = kv_heads;
  keys.view.capacity = rows + spare;
  keys.view.head_dim = dim;
  return keys;
}

struct Shape {
  int64_t kv_heads, group, dim, before, tail, rows;
};

TEST(AttentionVotesTest, AgreeWithThePlainTwinOnEveryShape) {
  const TestModel tiny = MakeTestModel();
  // Groups of 1, 3 and 8; fewer and more rows than a block; one column; nothing before; a tail
  // that is older than the queries; sizes that are no multiple of anything.
  const Shape shapes[] = {{1, 1, 8, 0, 1, 1},     {2, 3, 24, 37, 5, 5},  {2, 8, 64, 0, 150, 150},
                          {1, 2, 16, 61, 80, 65}, {3, 1, 40, 129, 1, 1}, {1, 4, 32, 0, 130, 64}};
  for (const Shape& shape : shapes) {
    const Keys before = RandomKeys(shape.kv_heads, shape.before, shape.dim, 3, 1);
    const Keys tail = RandomKeys(shape.kv_heads, shape.tail, shape.dim, 2, 2);
    Keys q = RandomKeys(1, shape.rows, shape.kv_heads * shape.group * shape.dim, 0, 3);
    TensorView queries;
    queries.data = q.floats.data();
    queries.rows = shape.rows;
    queries.cols = shape.kv_heads * shape.group * shape.dim;
    const VoteKeys keys{.before = before.view,
                        .before_rows = shape.before,
                        .tail = tail.view,
                        .tail_rows = shape.tail};
    std::vector<double> fast(shape.kv_heads * (shape.before + shape.tail));
    std::vector<double> plain(fast.size());
    KVTIER_ASSERT_OK(AddVotes(tiny.model->backend(), queries, keys, 0.7f, fast));
    KVTIER_ASSERT_OK(AddVotesReference(tiny.model->backend(), queries, keys, 0.7f, plain));
    double total = 0;
    for (size_t i = 0; i < fast.size(); ++i) {
      EXPECT_NEAR(fast[i], plain[i], 2e-5 * (1 + plain[i])) << "column " << i;
      total += plain[i];
    }
    EXPECT_NEAR(total, static_cast<double>(shape.rows * shape.kv_heads * shape.group), 1e-9);
  }
}

TEST(AttentionVotesTest, RefuseShapesThatDoNotFit) {
  const TestModel tiny = MakeTestModel();
  Keys tail = RandomKeys(2, 4, 8, 0, 1);
  Keys q = RandomKeys(1, 5, 32, 0, 2);
  TensorView queries;
  queries.data = q.floats.data();
  queries.rows = 5;
  queries.cols = 32;
  std::vector<double> sums(8);
  const auto votes = [&](const VoteKeys& keys, int64_t rows, size_t count) {
    return AddVotes(tiny.model->backend(), queries.Rows(0, rows), keys, 1.0f,
                    std::span(sums).first(count));
  };
  EXPECT_THAT(votes({.tail = tail.view, .tail_rows = 4}, 4, 8), IsOk());
  EXPECT_THAT(votes({.tail = tail.view, .tail_rows = 4}, 5, 8),  // More queries than keys.
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(votes({.tail = tail.view, .tail_rows = 4}, 4, 7),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(votes({.tail = tail.view, .tail_rows = 5}, 4, 8),  // Past the capacity.
              StatusIs(absl::StatusCode::kInvalidArgument));
}

// Prefill in pieces gives the cache that Prefill gives, and the votes of the definition.
TEST(AttentionVotesTest, PrefillCountsEveryRowOnce) {
  TinyModelOptions options;
  options.layers = 3;
  const TestModel tiny = MakeTestModel(options);
  const std::vector<uint32_t> ids = RandomTokens(90, /*seed=*/8);
  const DenseCache expected = PrefillForTest(*tiny.model, ids, DType::kF32);
  KVTIER_ASSERT_OK_AND_ASSIGN(DenseCache cache,
                              DenseCache::Create(tiny.model->backend(), expected.geometry(), 90));
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*tiny.model, 32));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const AttentionVotes votes,
      PrefillWithVotes(*tiny.model, ids, /*system_tokens=*/7, cache, scratch));
  EXPECT_EQ(votes.tokens, 83u);
  ASSERT_EQ(votes.sums.size(), 3u * 2 * 83);

  // The same rows in one piece, and through the twin. The pieces differ in rounding.
  KVTIER_ASSERT_OK_AND_ASSIGN(DenseCache whole,
                              DenseCache::Create(tiny.model->backend(), expected.geometry(), 90));
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch large, ForwardScratch::Create(*tiny.model, 90));
  ForwardPlan plan;
  plan.tail = &whole;
  plan.on_queries = [&](int64_t layer, TensorView q, KvLayerView tail) {
    std::vector<double> sums(2 * 90);
    KVTIER_RETURN_IF_ERROR(AddVotesReference(tiny.model->backend(), q,
                                             {.tail = tail, .tail_rows = 90},
                                             tiny.model->config().softmax_scale(), sums));
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint64_t t = 0; t < 83; ++t) {
        const double sum = sums[head * 90 + 7 + t];
        EXPECT_NEAR(votes.head(static_cast<uint32_t>(layer), head)[t], sum, 1e-3 * (1 + sum));
      }
    }
    return absl::OkStatus();
  };
  KVTIER_ASSERT_OK(Forward(*tiny.model, ids, plan, large, {}));

  EXPECT_THAT(PrefillWithVotes(*tiny.model, ids, 7, cache, scratch),  // Not empty any more.
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace kvtier
