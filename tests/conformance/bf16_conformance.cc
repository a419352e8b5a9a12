#include "tests/conformance/bf16_conformance.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "kvcache/row_codec.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/backend_threads.h"
#include "tests/testing/random.h"

namespace kvtier {

void Bf16ConformanceTest::SetUp() {
  backend_ = GetParam().make();
  if (backend_ == nullptr) GTEST_SKIP() << "this machine cannot run " << GetParam().name;
  ASSERT_EQ(backend_->activation_dtype(), DType::kBf16);
  reference_ = MakeReferenceBackend();
}

namespace {

constexpr double kRounding = 0x1p-8;  // Of an output to bf16 is half of that.

Floats RoundedFloats(std::mt19937_64& random, int64_t count, float size = 1) {
  Floats values = RandomFloats(random, count, size);
  RoundToBf16(values);
  return values;
}

Tensor MakeOutput(Backend& backend, int64_t rows, int64_t cols) {
  auto out = backend.Allocate(backend.activation_dtype(), rows, cols);
  KVTIER_EXPECT_OK(out);
  return *std::move(out);
}

TEST_P(Bf16ConformanceTest, ThreadsDoNotMeet) { ExpectThreadsDoNotMeet(*backend_); }

// Shapes of models (multiples of 8) and odd ones, which libraries may not take.
TEST_P(Bf16ConformanceTest, LinearEqualsTheReference) {
  std::mt19937_64 random(TestSeed());
  const int64_t shapes[][3] = {{1, 64, 256}, {5, 3, 7}, {171, 264, 512}, {33, 1000, 72}};
  for (const auto& [rows, out, in] : shapes) {
    SCOPED_TRACE(absl::StrCat("[", rows, ", ", in, "] x [", out, "]"));
    const Floats x = RoundedFloats(random, rows * in);
    const std::string weights = Encode(RandomFloats(random, out * in), DType::kBf16);
    const auto run = [&, rows_ = rows, out_ = out, in_ = in](Backend& backend) {
      const auto prepared = backend.PrepareLinear(AsBytes(weights), DType::kBf16, out_, in_);
      KVTIER_EXPECT_OK(prepared);
      const Tensor from = MakeActivations(backend, x, rows_, in_);
      const Tensor to = MakeOutput(backend, rows_, out_);
      KVTIER_EXPECT_OK(backend.Linear(from, **prepared, to));
      return Read(backend, to);
    };
    ExpectNear(run(*backend_), run(*reference_), 1e-6 * std::sqrt(double(in)) + 1e-5, kRounding);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Bf16ConformanceTest, ElementwiseOperationsEqualTheReference) {
  std::mt19937_64 random(TestSeed());
  const int64_t rows = 37;
  const int64_t heads = 3;
  const int64_t cols = heads * 64;
  const Floats a = RoundedFloats(random, rows * cols, 3);
  const Floats b = RoundedFloats(random, rows * cols, 3);
  const Floats weight = RandomFloats(random, cols);
  RopeTable table;
  for (int d = 0; d < 32; ++d) {
    table.inverse_frequencies.push_back(std::pow(10000.0f, -static_cast<float>(d) / 32));
  }
  const auto run = [&](Backend& backend) {
    std::vector<Floats> results;
    const Tensor x = MakeActivations(backend, a, rows, cols);
    const Tensor y = MakeActivations(backend, b, rows, cols);
    const Tensor w = MakeTensor(backend, weight, DType::kF32, 1, cols);
    const Tensor out = MakeOutput(backend, rows, cols);
    KVTIER_EXPECT_OK(backend.RmsNorm(x, w, 1e-5f, out));
    results.push_back(Read(backend, out));
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      KVTIER_EXPECT_OK(backend.GateMul(activation, x, y, out));
      results.push_back(Read(backend, out));
    }
    KVTIER_EXPECT_OK(backend.AddInPlace(x, y));
    results.push_back(Read(backend, x));
    KVTIER_EXPECT_OK(backend.Rope(y, heads, table, 4321));
    results.push_back(Read(backend, y));
    return results;
  };
  const std::vector<Floats> mine = run(*backend_);
  const std::vector<Floats> theirs = run(*reference_);
  for (size_t i = 0; i < mine.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("result ", i));
    // Two products of a rotation may cancel after each was rounded to fp32.
    ExpectNear(mine[i], theirs[i], 1e-5, kRounding);
    if (HasFatalFailure()) return;
  }
}

struct SpanCase {
  int64_t dim = 64;
  int64_t group = 1;
  int64_t rows = 1;
  std::vector<std::vector<uint32_t>> spans = {{}, {}};  // [heads][spans] rows each
  std::vector<CodecId> codecs = {CodecId::kRaw};        // Of each head's spans in turn.
  int64_t tail_before = 0;
  int64_t window = 0;
};

Floats Attend(Backend& backend, const SpanCase& c) {
  std::mt19937_64 random(17);
  const auto heads = static_cast<int64_t>(c.spans.size());
  const int64_t width = heads * c.group * c.dim;
  const Tensor q =
      MakeActivations(backend, RoundedFloats(random, c.rows * width, 2), c.rows, width);
  const int64_t capacity = c.tail_before + c.rows + 3;
  const Layer tail = MakeLayer(backend, RandomFloats(random, heads * capacity * c.dim),
                               RandomFloats(random, heads * capacity * c.dim), DType::kBf16, heads,
                               capacity, c.dim);
  std::vector<Tensor> memory;
  const auto keep = [&](Tensor tensor) {
    memory.push_back(std::move(tensor));
    return static_cast<const std::byte*>(memory.back().data());
  };
  std::vector<std::vector<RowSpan>> spans(c.spans.size());
  for (size_t h = 0; h < c.spans.size(); ++h) {
    for (const uint32_t rows : c.spans[h]) {
      RowSpan span{.rows = rows, .codec = c.codecs[spans[h].size() % c.codecs.size()]};
      for (const bool of_keys : {true, false}) {
        const Floats elements = RandomFloats(random, rows * c.dim);
        const RowCodec* codec = FindRowCodec(span.codec);
        if (codec == nullptr) {
          (of_keys ? span.keys : span.values) =
              keep(MakeTensor(backend, elements, DType::kBf16, rows, c.dim));
          continue;
        }
        const auto width_of_row = static_cast<uint32_t>(c.dim);
        std::string codes(rows * codec->code_bytes(width_of_row), '\0');
        std::string scales(rows * codec->scale_bytes(), '\0');
        KVTIER_EXPECT_OK(
            EncodeRows(*codec, DType::kF32, AsBytes(Encode(elements, DType::kF32)).data(), rows,
                       width_of_row, AsMutableBytes(codes).data(), AsMutableBytes(scales).data()));
        (of_keys ? span.keys : span.values) = keep(MakeBytes(backend, codes));
        (of_keys ? span.key_scales : span.value_scales) = keep(MakeBytes(backend, scales));
      }
      spans[h].push_back(span);
    }
  }
  const HeadSpans views(spans.begin(), spans.end());
  const Tensor out = MakeOutput(backend, c.rows, width);
  KVTIER_EXPECT_OK(backend.Attention({.q = q,
                                      .spans = &views,
                                      .span_dtype = DType::kBf16,
                                      .tail = tail.view,
                                      .tail_rows = c.tail_before + c.rows,
                                      .scale = 1 / std::sqrt(static_cast<float>(c.dim)),
                                      .window = c.window,
                                      .out = out}));
  return Read(backend, out);
}

TEST_P(Bf16ConformanceTest, AttentionEqualsTheReference) {
  const std::vector<CodecId> mixed = {CodecId::kInt4, CodecId::kRaw, CodecId::kInt8};
  for (const SpanCase& c : {
           SpanCase{},  // One row sees itself.
           SpanCase{.group = 4, .rows = 45, .tail_before = 290},
           SpanCase{.dim = 128, .group = 4, .rows = 1, .spans = {{3000, 64, 7}, {2, 0, 129}}},
           SpanCase{.dim = 96, .group = 3, .rows = 130, .spans = {{63, 65, 64}, {}}},
           SpanCase{.dim = 128, .group = 2, .rows = 70, .spans = {{200}, {1}}, .window = 37},
           SpanCase{.group = 7, .rows = 20, .spans = {{2000}, {100, 1, 2}}, .window = 1500},
           SpanCase{.dim = 256, .group = 2, .rows = 3, .spans = {{70}, {5}}, .tail_before = 9},
           SpanCase{.dim = 128, .group = 4, .spans = {{900, 64, 70}, {2, 0, 129}}, .codecs = mixed},
           SpanCase{.group = 2, .rows = 40, .spans = {{300, 150}, {5, 64, 1}}, .codecs = mixed},
       }) {
    SCOPED_TRACE(
        absl::StrCat("dim ", c.dim, " group ", c.group, " rows ", c.rows, " window ", c.window));
    // A weight that tensor cores take as bf16 is off by 2^-9 of itself; values are of size 1. Rows
    // decoded into bf16 are rounded once more than the reference's.
    const double rounding = c.codecs.size() > 1 ? 1e-2 : 0;
    const Floats mine = Attend(*backend_, c);
    ExpectNear(mine, Attend(*reference_, c), 0x1p-9 + 1e-5 + rounding, kRounding);
    if (HasFatalFailure()) return;
    EXPECT_EQ(Attend(*backend_, c), mine) << "a second run differs";
  }
}

TEST_P(Bf16ConformanceTest, ScoresEqualTheReference) {
  const int64_t heads = 2;
  const int64_t group = 3;
  const int64_t rows = 70;
  const int64_t columns = 130;
  for (const int64_t dim : {32, 64, 96, 128, 256}) {
    SCOPED_TRACE(absl::StrCat("dim ", dim));
    const auto run = [&](Backend& backend) {
      std::mt19937_64 random(18);
      const int64_t width = heads * group * dim;
      const Tensor q =
          MakeActivations(backend, RoundedFloats(random, rows * width, 2), rows, width);
      const Floats keys = RandomFloats(random, heads * 200 * dim);
      const Layer cache = MakeLayer(backend, keys, keys, DType::kBf16, heads, 200, dim);
      const Floats own = RandomFloats(random, heads * rows * dim);
      const Layer repeat = MakeLayer(backend, own, own, DType::kBf16, heads, rows, dim);
      const Tensor out = MakeTensor(backend, Floats(static_cast<size_t>(heads * columns)),
                                    DType::kF32, heads, columns);
      KVTIER_EXPECT_OK(backend.ScoreColumnMax({.q = q,
                                               .cache = cache.view,
                                               .sink_rows = 5,
                                               .chunk_begin = 20,
                                               .chunk_end = 20 + columns,
                                               .repeat = repeat.view,
                                               .scale = 0.1f,
                                               .out = static_cast<float*>(out.data()),
                                               .out_stride = columns}));
      return Read(backend, out);
    };
    // Products of bf16 are exact in fp32, and scores are not rounded.
    ExpectNear(run(*backend_), run(*reference_), 4e-5, 1e-6);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace kvtier
