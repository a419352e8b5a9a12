#include "compressor/scoring.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/status_matchers.h"
#include "compressor/dense_spans.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kChunk = 24;

TinyModelOptions SmallChunks() {
  TinyModelOptions options;
  options.chunk_tokens = kChunk;
  return options;
}

std::vector<uint32_t> WithPrefix(const Model& model, const std::vector<uint32_t>& context) {
  std::vector<uint32_t> ids = model.profile().prefix;
  ids.insert(ids.end(), context.begin(), context.end());
  return ids;
}

absl::StatusOr<ScoreTable> Score(const Model& model, const std::vector<uint32_t>& context,
                                 const DenseCache& cache,
                                 const std::function<void(uint64_t)>& on_chunk = nullptr,
                                 const CancelToken& cancel = CancelToken()) {
  absl::StatusOr<ForwardScratch> scratch = ForwardScratch::Create(
      model, static_cast<int64_t>(model.profile().RepeatRowsMax(context.size())));
  KVTIER_CHECK_OK(scratch);
  return ReadScores(ScoreContext(model, context,
                                 cache.length() - static_cast<int64_t>(context.size()), cache,
                                 *scratch, cancel, on_chunk));
}

// One layer's queries and keys of a repeat pass, copied while it ran. fp32.
struct Capture {
  std::vector<float> q;       // [rows, q_heads * head_dim]
  std::vector<float> repeat;  // [kv_heads, rows, head_dim]
};

// Runs the repeat input of a chunk as ScoreContext should, with nothing but Forward.
std::vector<Capture> CaptureRepeatPass(const Model& model, std::span<const uint32_t> ids,
                                       const DenseCache& cache) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  absl::StatusOr<DenseCache> tail = DenseCache::Create(model.backend(), cache.geometry(), rows);
  absl::StatusOr<ForwardScratch> scratch = ForwardScratch::Create(model, rows);
  KVTIER_CHECK_OK(tail);
  KVTIER_CHECK_OK(scratch);
  const DenseSpans spans(cache);
  std::vector<Capture> captures;
  ForwardPlan plan;
  plan.spans = [&](int64_t layer) { return spans.layer(layer); };
  plan.tail = &*tail;
  plan.first_position = cache.length();
  plan.on_queries = [&](int64_t, TensorView q, KvLayerView layer) {
    Capture& capture = captures.emplace_back();
    const auto* queries = static_cast<const float*>(q.data);
    const auto* keys = static_cast<const float*>(layer.keys);
    capture.q.assign(queries, queries + q.rows * q.cols);
    capture.repeat.assign(keys, keys + layer.kv_heads * layer.capacity * layer.head_dim);
    return absl::OkStatus();
  };
  KVTIER_CHECK_OK(Forward(model, ids, plan, *scratch, {}));
  return captures;
}

// The whole table from captured queries and keys: a second, term-by-term way to every score.
ScoreTable PlainTable(const Model& model, const std::vector<uint32_t>& context,
                      const DenseCache& cache) {
  const ModelConfig& config = model.config();
  const int64_t system_tokens = cache.length() - static_cast<int64_t>(context.size());
  ScoreTable table = ScoreTable::Create(static_cast<uint32_t>(config.layers),
                                        static_cast<uint32_t>(config.kv_heads), context.size());
  for (uint32_t c = 0; c < model.profile().ChunkCount(context.size()); ++c) {
    const PromptProfile::Chunk chunk = model.profile().ChunkAt(context.size(), c);
    const std::vector<uint32_t> ids = model.profile().RepeatInput(context, c);
    const std::vector<Capture> captures = CaptureRepeatPass(model, ids, cache);
    for (uint32_t l = 0; l < config.layers; ++l) {
      for (uint32_t h = 0; h < config.kv_heads; ++h) {
        const auto* keys = static_cast<const float*>(cache.layer(l).keys);
        PlainScoreInput in;
        in.group = static_cast<int>(config.q_heads / config.kv_heads);
        in.head_dim = static_cast<int>(config.head_dim);
        in.rows = static_cast<int>(ids.size());
        in.sink_rows = system_tokens;
        in.chunk_begin = system_tokens + static_cast<int64_t>(chunk.begin);
        in.chunk_end = system_tokens + static_cast<int64_t>(chunk.end);
        in.scale = 1 / std::sqrt(double(config.head_dim));
        in.query = [&](int g, int i, int d) {
          return captures[l].q[(i * config.q_heads + h * in.group + g) * config.head_dim + d];
        };
        in.key = [&](int64_t j, int d) {
          return keys[(h * cache.capacity() + j) * config.head_dim + d];
        };
        in.repeat_key = [&](int i, int d) {
          return captures[l].repeat[(h * ids.size() + i) * config.head_dim + d];
        };
        const std::vector<double> scores = PlainScores(in);
        for (size_t t = 0; t < scores.size(); ++t) {
          table.at(l, h, chunk.begin + t) = static_cast<float>(scores[t]);
        }
      }
    }
  }
  return table;
}

class ScoringChunksTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(ScoringChunksTest, EqualsThePlainTwin) {
  const TestModel tiny = MakeTestModel(SmallChunks());
  const std::vector<uint32_t> context = RandomTokens(GetParam(), /*seed=*/3);
  const DenseCache cache =
      PrefillForTest(*tiny.model, WithPrefix(*tiny.model, context), DType::kF32);
  std::vector<uint64_t> progress;
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ScoreTable scores,
      Score(*tiny.model, context, cache, [&](uint64_t done) { progress.push_back(done); }));
  const ScoreTable plain = PlainTable(*tiny.model, context, cache);
  ASSERT_EQ(scores.pairs(), plain.pairs());
  float smallest = 0;
  for (uint64_t i = 0; i < plain.pairs(); ++i) {
    // fp32 queries and keys, double sums on both sides.
    EXPECT_NEAR(scores.log_scores[i], plain.log_scores[i], 2e-5 + 1e-5 * -plain.log_scores[i]) << i;
    EXPECT_LE(scores.log_scores[i], 0);
    smallest = std::min(smallest, scores.log_scores[i]);
  }
  if (GetParam() >= kChunk) {
    EXPECT_LT(smallest, -2.5) << "the attention is flat: this test shows little";
  }
  EXPECT_EQ(progress.size(), (GetParam() + kChunk - 1) / kChunk);
  EXPECT_EQ(progress.back(), GetParam());
}

// Shorter than a chunk, one token, equal, one more (a last chunk of one token), two, two and a bit.
INSTANTIATE_TEST_SUITE_P(ContextTokens, ScoringChunksTest,
                         ::testing::Values(1, 7, kChunk, kChunk + 1, 2 * kChunk, 2 * kChunk + 5));

TEST(ScoringTest, LeavesTheCacheBitIdentical) {
  const TestModel tiny = MakeTestModel(SmallChunks());
  const std::vector<uint32_t> context = RandomTokens(3 * kChunk, /*seed=*/4);
  const DenseCache cache =
      PrefillForTest(*tiny.model, WithPrefix(*tiny.model, context), DType::kBf16, /*extra_rows=*/9);
  const std::vector<std::byte> before = CacheBytes(cache);
  const int64_t length = cache.length();
  KVTIER_ASSERT_OK(Score(*tiny.model, context, cache));
  EXPECT_EQ(CacheBytes(cache), before);
  EXPECT_EQ(cache.length(), length);
}

TEST(ScoringTest, IsRepeatable) {
  const TestModel tiny = MakeTestModel(SmallChunks());
  const std::vector<uint32_t> context = RandomTokens(kChunk, /*seed=*/5);
  const DenseCache cache =
      PrefillForTest(*tiny.model, WithPrefix(*tiny.model, context), DType::kF32);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable once, Score(*tiny.model, context, cache));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable again, Score(*tiny.model, context, cache));
  EXPECT_EQ(once.log_scores, again.log_scores);
}

TEST(ScoringTest, StopsBetweenChunksWhenCancelled) {
  const TestModel tiny = MakeTestModel(SmallChunks());
  const std::vector<uint32_t> context = RandomTokens(3 * kChunk, /*seed=*/6);
  const DenseCache cache =
      PrefillForTest(*tiny.model, WithPrefix(*tiny.model, context), DType::kF32);
  CancelToken cancel;
  std::vector<uint64_t> progress;
  const auto on_chunk = [&](uint64_t done) {
    progress.push_back(done);
    if (done == 2 * kChunk) cancel.Cancel();
  };
  EXPECT_THAT(Score(*tiny.model, context, cache, on_chunk, cancel),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(progress, ElementsAre(kChunk, 2 * kChunk));
}

TEST(ScoringTest, RefusesACacheOfAnotherLength) {
  const TestModel tiny = MakeTestModel(SmallChunks());
  const std::vector<uint32_t> context = RandomTokens(10, /*seed=*/7);
  const DenseCache cache = PrefillForTest(*tiny.model, context, DType::kF32);
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*tiny.model, 64));
  EXPECT_THAT(
      ScoreContext(*tiny.model, context, /*system_tokens=*/3, cache, scratch, CancelToken(), {}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds 10 rows")));
}

TEST(ScoringTest, RefusesScoresThatAreNotFinite) {
  const TestModel tiny = MakeTestModel(SmallChunks());
  const std::vector<uint32_t> context = RandomTokens(10, /*seed=*/8);
  const DenseCache cache =
      PrefillForTest(*tiny.model, WithPrefix(*tiny.model, context), DType::kF32);
  // A NaN key, as an overflow in the model would leave it.
  const KvLayerView layer = cache.layer(1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(static_cast<float*>(layer.keys) + 5 * layer.head_dim, &nan, sizeof(nan));
  EXPECT_THAT(Score(*tiny.model, context, cache),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 1, head 0")));
}

}  // namespace
}  // namespace kvtier
