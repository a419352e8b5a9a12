#include "tests/conformance/bf16_conformance.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "tests/conformance/backend_tensors.h"
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

TEST_P(Bf16ConformanceTest, AttentionEqualsTheReference) {
  for (const int64_t rows : {1, 2, 45}) {
    for (const int64_t group : {1, 4}) {
      SCOPED_TRACE(absl::StrCat(rows, " rows, group ", group));
      const int64_t heads = 2;
      const int64_t dim = 64;
      const int64_t width = heads * group * dim;
      const auto run = [&](Backend& backend) {
        std::mt19937_64 random(17);
        const Tensor q =
            MakeActivations(backend, RoundedFloats(random, rows * width, 2), rows, width);
        const int64_t capacity = rows + 300;
        const Layer tail = MakeLayer(backend, RandomFloats(random, heads * capacity * dim),
                                     RandomFloats(random, heads * capacity * dim), DType::kBf16,
                                     heads, capacity, dim);
        const Tensor out = MakeOutput(backend, rows, width);
        KVTIER_EXPECT_OK(backend.Attention({.q = q,
                                            .span_dtype = DType::kBf16,
                                            .tail = tail.view,
                                            .tail_rows = rows + 290,
                                            .scale = 0.125f,
                                            .out = out}));
        return Read(backend, out);
      };
      // A weight that tensor cores take as bf16 is off by 2^-9 of itself; values are of size 1.
      ExpectNear(run(*backend_), run(*reference_), 0x1p-9 + 1e-5, kRounding);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Bf16ConformanceTest, ScoresEqualTheReference) {
  const int64_t heads = 2;
  const int64_t group = 3;
  const int64_t dim = 128;
  const int64_t rows = 70;
  const int64_t columns = 130;
  const auto run = [&](Backend& backend) {
    std::mt19937_64 random(18);
    const int64_t width = heads * group * dim;
    const Tensor q = MakeActivations(backend, RoundedFloats(random, rows * width, 2), rows, width);
    const Floats keys = RandomFloats(random, heads * 200 * dim);
    const Layer cache = MakeLayer(backend, keys, keys, DType::kBf16, heads, 200, dim);
    const Floats own = RandomFloats(random, heads * rows * dim);
    const Layer repeat = MakeLayer(backend, own, own, DType::kBf16, heads, rows, dim);
    Floats out(static_cast<size_t>(heads * columns));
    KVTIER_EXPECT_OK(backend.ScoreColumnMax({.q = q,
                                             .cache = cache.view,
                                             .sink_rows = 5,
                                             .chunk_begin = 20,
                                             .chunk_end = 20 + columns,
                                             .repeat = repeat.view,
                                             .scale = 0.1f,
                                             .out = out.data(),
                                             .out_stride = columns}));
    KVTIER_EXPECT_OK(backend.Synchronize());
    return out;
  };
  // Products of bf16 are exact in fp32, and scores are not rounded.
  ExpectNear(run(*backend_), run(*reference_), 4e-5, 1e-6);
}

}  // namespace
}  // namespace kvtier
