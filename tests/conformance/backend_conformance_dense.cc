// Linear layers, and what is computed element by element or row by row.
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/host_backend.h"
#include "gmock/gmock.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/backend_threads.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

TEST_P(BackendConformanceTest, ThreadsDoNotMeet) { ExpectThreadsDoNotMeet(*backend_); }

TEST_P(BackendConformanceTest, LinearEqualsTheReference) {
  std::mt19937_64 random(TestSeed());
  const int64_t shapes[][2] = {{1, 1}, {5, 3}, {64, 256}, {264, 32}, {1000, 72}, {130, 4096}};
  for (const auto& shape : shapes) {
    const int64_t out = shape[0];
    const int64_t in = shape[1];
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      const std::string weights = Encode(RandomFloats(random, out * in), dtype);
      Floats values(static_cast<size_t>(out * in));
      LoadFloats(AsBytes(weights).data(), dtype, values);
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto mine,
                                  backend_->PrepareLinear(AsBytes(weights), dtype, out, in));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto theirs,
                                  reference_->PrepareLinear(AsBytes(weights), dtype, out, in));
      EXPECT_EQ(mine->in_features(), in);
      EXPECT_EQ(mine->out_features(), out);
      const bool halves = GetParam().bf16_products && dtype == DType::kBf16;
      EXPECT_GE(mine->bytes(), static_cast<uint64_t>(in * out) * (halves ? 2 : 1));
      Floats read(values.size());
      KVTIER_ASSERT_OK(backend_->ReadLinear(*mine, read));
      EXPECT_EQ(read, values) << "packing changed a weight of [" << out << ", " << in << "]";
      EXPECT_THAT(backend_->ReadLinear(*mine, std::span(read).first(read.size() - 1)),
                  StatusIs(absl::StatusCode::kInvalidArgument));
      for (int64_t rows : {1, 8, 171}) {  // 171 = 128 + 32 + 8 + 3: every block of rows
        SCOPED_TRACE(absl::StrCat("[", rows, ", ", in, "] x [", out, "] ", DTypeName(dtype)));
        Floats x = RandomFloats(random, rows * in);
        if (GetParam().bf16_products && dtype == DType::kBf16) {
          RoundToBf16(x);
        }
        const auto run = [&](Backend& backend, const LinearWeights& w) {
          const Tensor from = MakeActivations(backend, x, rows, in);
          auto to = backend.Allocate(backend.activation_dtype(), rows, out);
          KVTIER_EXPECT_OK(to);
          KVTIER_EXPECT_OK(backend.Linear(from, w, *to));
          return Read(backend, *to);
        };
        ExpectNear(run(*backend_, *mine), run(*reference_, *theirs),
                   1e-6 * std::sqrt(static_cast<double>(in)), 1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// In fp32 whatever the table's dtype, so that products are compared as they are.
TEST_P(BackendConformanceTest, LinearOverASharedTableEqualsTheReference) {
  std::mt19937_64 random(TestSeed());
  for (const auto& [out, in] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {5, 3}, {260, 256}, {64, 72}, {700, 128}}) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      const Floats values = RandomFloats(random, out * in);
      for (int64_t rows : {1, 4, 7}) {
        SCOPED_TRACE(absl::StrCat("[", rows, ", ", in, "] x [", out, "] ", DTypeName(dtype)));
        const Floats x = RandomFloats(random, rows * in);
        const auto run = [&, out_ = out, in_ = in](Backend& backend) {
          const Tensor table = MakeTensor(backend, values, dtype, out_, in_);
          const auto weights = backend.ShareLinear(table);
          KVTIER_EXPECT_OK(weights);
          EXPECT_EQ((*weights)->out_features(), out_);
          Floats read(values.size());
          Floats rounded(values.size());
          LoadFloats(AsBytes(Encode(values, dtype)).data(), dtype, rounded);
          KVTIER_EXPECT_OK(backend.ReadLinear(**weights, read));
          EXPECT_EQ(read, rounded);
          const Tensor from = MakeActivations(backend, x, rows, in_);
          auto to = backend.Allocate(backend.activation_dtype(), rows, out_);
          KVTIER_EXPECT_OK(to);
          KVTIER_EXPECT_OK(backend.Linear(from, **weights, *to));
          return Read(backend, *to);
        };
        ExpectNear(run(*backend_), run(*reference_), 1e-6 * std::sqrt(static_cast<double>(in)),
                   1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(BackendConformanceTest, ElementwiseOperationsEqualTheReference) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 8}, {3, 40}, {2, 64}, {70, 256}, {513, 72}}) {
    std::mt19937_64 random(TestSeed() + static_cast<uint64_t>(rows));
    Floats a = RandomFloats(random, rows * cols, 3);
    const Floats b = RandomFloats(random, rows * cols, 3);
    a[0] = 90;  // Outliers: exp of them overflows and underflows.
    a[1] = -90;
    a[2] = 1e-30f;
    const Floats weight = RandomFloats(random, cols);
    struct Results {
      Floats norm, norm_in_place, sum, biased, silu, gelu;
    };
    const auto run = [&, rows_ = rows, cols_ = cols](Backend& backend) {
      Results results;
      const Tensor x = MakeActivations(backend, a, rows_, cols_);
      const Tensor y = MakeActivations(backend, b, rows_, cols_);
      const Tensor w = MakeTensor(backend, weight, DType::kF32, 1, cols_);
      auto out = backend.Allocate(backend.activation_dtype(), rows_, cols_);
      KVTIER_EXPECT_OK(out);
      KVTIER_EXPECT_OK(backend.RmsNorm(x, w, 1e-5f, *out));
      results.norm = Read(backend, *out);
      KVTIER_EXPECT_OK(backend.GateMul(Activation::kSilu, x, y, *out));
      results.silu = Read(backend, *out);
      KVTIER_EXPECT_OK(backend.GateMul(Activation::kGeluTanh, x, y, *out));
      results.gelu = Read(backend, *out);
      KVTIER_EXPECT_OK(backend.AddInPlace(x, y));
      results.sum = Read(backend, x);
      KVTIER_EXPECT_OK(backend.AddInPlace(x, TensorView(y).Rows(rows_ - 1, 1)));
      results.biased = Read(backend, x);
      KVTIER_EXPECT_OK(backend.RmsNorm(x, w, 1e-5f, x));
      results.norm_in_place = Read(backend, x);
      return results;
    };
    const Results mine = run(*backend_);
    const Results theirs = run(*reference_);
    ExpectNear(mine.norm, theirs.norm, 1e-6, 2e-6);
    ExpectNear(mine.silu, theirs.silu, 1e-6, 2e-6);
    ExpectNear(mine.gelu, theirs.gelu, 1e-6, 4e-6);
    ExpectNear(mine.sum, theirs.sum, 0, 0);
    ExpectNear(mine.biased, theirs.biased, 0, 0);
    ExpectNear(mine.norm_in_place, theirs.norm_in_place, 1e-6, 2e-6);
  }
}

TEST_P(BackendConformanceTest, RopeEqualsTheReferenceAndKeepsLengths) {
  std::mt19937_64 random(TestSeed());
  for (int64_t dim : {2, 64, 128}) {
    RopeTable table{.inverse_frequencies = {}, .attention_scaling = 1.0f};
    for (int64_t d = 0; d < dim; d += 2) {
      table.inverse_frequencies.push_back(
          1.0f / std::pow(10000.0f, static_cast<float>(d) / static_cast<float>(dim)));
    }
    const int64_t heads = 3;
    const int64_t rows = 37;
    const Floats x = RandomFloats(random, rows * heads * dim);
    const auto run = [&](Backend& backend) {
      const Tensor tensor = MakeActivations(backend, x, rows, heads * dim);
      KVTIER_EXPECT_OK(backend.Rope(tensor, heads, table, 12345));
      return Read(backend, tensor);
    };
    const Floats mine = run(*backend_);
    ExpectNear(mine, run(*reference_), 2e-6, 0);
    for (size_t i = 0; i < mine.size(); i += static_cast<size_t>(dim)) {
      double before = 0;
      double after = 0;
      for (size_t d = i; d < i + static_cast<size_t>(dim); ++d) {
        before += double{x[d]} * x[d];
        after += double{mine[d]} * mine[d];
      }
      ASSERT_NEAR(before, after, 1e-5 * (1 + before));
    }
  }
}

TEST_P(BackendConformanceTest, EmbedCopiesRowsOfAnyDtype) {
  std::mt19937_64 random(TestSeed());
  const std::vector<uint32_t> ids{3, 0, 9, 3};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    const Floats values = RandomFloats(random, 10 * 40);
    float scale = 1;
    const auto run = [&](Backend& backend) {
      const Tensor table = MakeTensor(backend, values, dtype, 10, 40);
      auto out = backend.Allocate(backend.activation_dtype(), 4, 40);
      KVTIER_EXPECT_OK(out);
      KVTIER_EXPECT_OK(backend.Embed(ids, table, scale, *out));
      return Read(backend, *out);
    };
    ExpectNear(run(*backend_), run(*reference_), 0, 0);
    scale = 1.75f;
    ExpectNear(run(*backend_), run(*reference_), 0, 0);
  }
  const Tensor table = MakeTensor(*backend_, Floats(40), DType::kF32, 1, 40);
  KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor out,
                              backend_->Allocate(backend_->activation_dtype(), 1, 40));
  const std::vector<uint32_t> unknown{1};
  EXPECT_THAT(backend_->Embed(unknown, table, 1, out),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace kvtier
