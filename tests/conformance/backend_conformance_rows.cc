// Rows into a cache and out of it; and that no operation takes shapes which do not fit.
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

// AppendKv rounds to nearest even and touches its rows only; GatherRows gives the same bytes back.
TEST_P(BackendConformanceTest, AppendAndGatherAreExact) {
  std::mt19937_64 random(TestSeed());
  const int64_t heads = 3;
  const int64_t dim = 64;
  const int64_t capacity = 10;
  const int64_t rows = 4;
  const int64_t at = 5;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    Floats k = RandomFloats(random, rows * heads * dim);
    const Floats v = RandomFloats(random, rows * heads * dim);
    k[0] = 1.0f + 0x1p-8f;      // A tie of bf16: to even, 1.
    k[1] = 1.0f + 3 * 0x1p-8f;  // To even, 1 + 2^-6.
    k[2] = 1e-6f;               // A subnormal half.
    const Floats zeros(static_cast<size_t>(heads * capacity * dim), 0.25f);
    const Layer layer = MakeLayer(*backend_, zeros, zeros, dtype, heads, capacity, dim);
    const Tensor k_rows = MakeActivations(*backend_, k, rows, heads * dim);
    const Tensor v_rows = MakeActivations(*backend_, v, rows, heads * dim);
    KVTIER_ASSERT_OK(backend_->AppendKv(k_rows, v_rows, layer.view, at));
    const Floats k_seen = Read(*backend_, k_rows);
    const Floats v_seen = Read(*backend_, v_rows);
    const std::vector<uint32_t> positions{8, 4, 5};
    const size_t row_bytes = static_cast<size_t>(dim) * DTypeBytes(dtype);
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<std::byte> keys(3 * row_bytes);
      std::vector<std::byte> values(3 * row_bytes);
      KVTIER_ASSERT_OK(backend_->GatherRows(layer.view, h, positions, keys.data(), values.data()));
      const auto expected = [&](const Floats& from, int64_t row) {
        const auto begin = from.begin() + (row * heads + h) * dim;
        return Encode(Floats(begin, begin + dim), dtype);
      };
      const auto untouched = Encode(Floats(static_cast<size_t>(dim), 0.25f), dtype);
      EXPECT_EQ(ToString(ByteSpan(keys)), expected(k_seen, 3) + untouched + expected(k_seen, 0));
      EXPECT_EQ(ToString(ByteSpan(values)), expected(v_seen, 3) + untouched + expected(v_seen, 0));
    }
  }
}

TEST_P(BackendConformanceTest, RefusesShapesThatDoNotFit) {
  const auto bad = StatusIs(absl::StatusCode::kInvalidArgument);
  const Floats zeros(2 * 8 * 64);
  const Layer layer = MakeLayer(*backend_, zeros, zeros, DType::kBf16, 2, 8, 64);
  const Tensor q = MakeActivations(*backend_, Floats(3 * 256), 3, 256);
  const Tensor out = MakeActivations(*backend_, Floats(3 * 256), 3, 256);
  const AttentionArgs good{.q = q,
                           .span_dtype = DType::kBf16,
                           .tail = layer.view,
                           .tail_rows = 3,
                           .scale = 0.125f,
                           .out = out};
  KVTIER_EXPECT_OK(backend_->Attention(good));
  AttentionArgs args = good;
  args.tail_rows = 2;
  EXPECT_THAT(backend_->Attention(args), bad) << "fewer tail rows than queries";
  args = good;
  args.tail_rows = 9;
  EXPECT_THAT(backend_->Attention(args), bad) << "past the capacity";
  args = good;
  args.span_dtype = DType::kF32;
  EXPECT_THAT(backend_->Attention(args), bad) << "dtypes differ";
  args = good;
  args.window = -1;
  EXPECT_THAT(backend_->Attention(args), bad) << "a negative window";
  const HeadSpans one_head(1);
  args = good;
  args.spans = &one_head;
  EXPECT_THAT(backend_->Attention(args), bad) << "spans of one head, tail of two";
  args = good;
  args.tail.head_dim = 48;
  EXPECT_THAT(backend_->Attention(args), bad) << "256 columns are no multiple of 2 * 48";

  EXPECT_THAT(backend_->AppendKv(q, q, layer.view, 0), bad);
  EXPECT_THAT(backend_->AddInPlace(q, TensorView(out).Rows(0, 2)), bad);
  const std::string weights(256 * 2, '\0');
  EXPECT_THAT(backend_->PrepareLinear(AsBytes(weights), DType::kBf16, 2, 256), bad);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto linear,
                              backend_->PrepareLinear(AsBytes(weights), DType::kBf16, 1, 256));
  EXPECT_THAT(backend_->Linear(q, *linear, out), bad);
  const std::vector<uint32_t> position{8};
  std::vector<std::byte> row(128);
  EXPECT_THAT(backend_->GatherRows(layer.view, 0, position, row.data(), row.data()), bad);
  std::vector<float> scores(8);
  ScoreArgs score{.q = q,
                  .cache = layer.view,
                  .sink_rows = 2,
                  .chunk_begin = 1,
                  .chunk_end = 5,
                  .repeat = layer.view,
                  .scale = 1,
                  .out = scores.data(),
                  .out_stride = 4};
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "sinks inside the chunk";
  score.sink_rows = 0;
  score.full_rows = 4;
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "the softmax leaves the chunk out";
  score.full_rows = layer.view.capacity + 1;
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "more rows than the cache has";
  score.full_rows = 0;
  score.key_offsets = scores.data();
  score.key_offset_stride = 3;
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "offsets of three columns, four are scored";
  EXPECT_THAT(backend_->Allocate(DType::kF32, -1, 4), bad);
}

}  // namespace
}  // namespace kvtier
