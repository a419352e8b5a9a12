#include "compressor/cpu_kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "base/half.h"
#include "compressor/cpu_backend.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

class CpuKernelsTest : public ::testing::TestWithParam<const CpuKernels* (*)()> {
 protected:
  void SetUp() override {
    kernels_ = GetParam()();
    if (kernels_ == nullptr) GTEST_SKIP() << "this machine lacks the instructions";
  }
  const CpuKernels* kernels_ = nullptr;
};

TEST_P(CpuKernelsTest, ExpIsWithinTwoUnitsInTheLastPlace) {
  std::vector<float> x;
  for (float value = -87; value < 88; value += 0.0137f) x.push_back(value);
  std::vector<float> y(x.size());
  kernels_->exp(x.data(), static_cast<int64_t>(x.size()), y.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(double{x[i]});
    ASSERT_NEAR(y[i] / exact, 1, 2 * 0x1p-23) << x[i];
  }
}

TEST_P(CpuKernelsTest, ExpOfSpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float x[] = {-infinity, -1e30f, -88, 0, -0.0f, std::nanf("")};
  float y[6];
  kernels_->exp(x, 6, y);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(y[i], 0) << x[i];
  EXPECT_EQ(y[3], 1);
  EXPECT_EQ(y[4], 1);
  EXPECT_TRUE(std::isnan(y[5]));
}

// Every 16-bit pattern, in both orders of memory.
TEST_P(CpuKernelsTest, LoadsEveryHalfExactly) {
  std::vector<uint16_t> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<float> loaded(bits.size());
  std::vector<float> transposed(bits.size());
  for (KvElement element : {KvElement::kF16, KvElement::kBf16}) {
    kernels_->load(bits.data(), element, 1 << 16, loaded.data());
    if (kernels_->factors_per_word == 1) {
      kernels_->load_transposed(bits.data(), element, 256, 256, transposed.data(), 256);
    } else {
      for (size_t i = 0; i < bits.size(); ++i) transposed[i % 256 * 256 + i / 256] = loaded[i];
    }
    for (size_t i = 0; i < bits.size(); ++i) {
      const float exact = element == KvElement::kF16
                              ? static_cast<float>(float16::FromBits(bits[i]))
                              : static_cast<float>(bfloat16::FromBits(bits[i]));
      const float turned = transposed[i % 256 * 256 + i / 256];
      if (std::isnan(exact)) {
        ASSERT_TRUE(std::isnan(loaded[i]) && std::isnan(turned)) << i;
      } else {
        ASSERT_EQ(loaded[i], exact) << i;
        ASSERT_EQ(turned, exact) << i;
      }
    }
  }
}

// Every upper half with lower halves at and around a tie, in a count that no vector divides.
TEST_P(CpuKernelsTest, RoundsToBf16AsTheStorageTypeDoes) {
  std::vector<float> x;
  for (uint32_t high = 0; high < 1 << 16; ++high) {
    for (uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      x.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  x.push_back(1);
  std::vector<uint16_t> rounded(x.size());
  kernels_->to_bf16(x.data(), static_cast<int64_t>(x.size()), rounded.data());
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(rounded[i], bfloat16(x[i]).bits) << x[i];
}

TEST_P(CpuKernelsTest, SoftmaxStepOfNothingLeavesTheRowAlone) {
  std::vector<float> logits(16, 3.0f);
  std::vector<float> out(16, 0.0f);
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0;
  kernels_->softmax_step(logits.data(), 16, 0, 0.5f, &maximum, &sum, out.data(), 16);
  EXPECT_EQ(sum, 0);
  EXPECT_TRUE(std::isinf(maximum));
  for (int64_t i = 0; i < 16 / kernels_->factors_per_word; ++i) EXPECT_EQ(logits[i], 0);
}

// Values that bf16 holds exactly, so that both kinds of factors give the same products.
std::vector<float> Bf16Floats(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(-2, 2);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(bfloat16(uniform(random)));
  return values;
}
std::vector<uint16_t> Bf16Bits(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (float value : values) bits.push_back(bfloat16(value).bits);
  return bits;
}

// Logits, weights and weighted values of every shape around the edges of words and vectors, step by
// step as attention does it, beside the same in double.
TEST_P(CpuKernelsTest, OneTileOfAttentionEqualsPlainLoops) {
  const int64_t per_word = kernels_->factors_per_word;
  const auto words = [per_word](int64_t count) { return (count + per_word - 1) / per_word; };
  for (const auto& [m, keys, dim, visible] : std::vector<std::array<int64_t, 4>>{{1, 1, 1, 1},
                                                                                 {7, 15, 6, 15},
                                                                                 {6, 64, 64, 40},
                                                                                 {13, 33, 31, 32},
                                                                                 {3, 100, 128, 99},
                                                                                 {25, 128, 80, 128},
                                                                                 {2, 17, 20, 0}}) {
    SCOPED_TRACE(testing::Message() << m << " queries, " << keys << " keys of " << dim << ", "
                                    << visible << " visible");
    const int64_t columns = (keys + kKernelPad - 1) / kKernelPad * kKernelPad;
    const int64_t padded = (dim + kKernelPad - 1) / kKernelPad * kKernelPad;
    const std::vector<float> q = Bf16Floats(m * dim, 1);
    const std::vector<float> k = Bf16Floats(keys * dim, 2);
    const std::vector<float> v = Bf16Floats(keys * dim, 3);
    std::vector<float> q_words(static_cast<size_t>(m * words(dim)));
    for (int64_t r = 0; r < m; ++r) {
      kernels_->load_query(q.data() + r * dim, dim, q_words.data() + r * words(dim));
    }
    std::vector<float> k_words(static_cast<size_t>(words(dim) * columns), std::nanf(""));
    std::vector<float> v_words(static_cast<size_t>(words(keys) * padded), std::nanf(""));
    kernels_->load_transposed(Bf16Bits(k).data(), KvElement::kBf16, keys, dim, k_words.data(),
                              columns);
    kernels_->load_values(Bf16Bits(v).data(), KvElement::kBf16, keys, dim, v_words.data(), padded);
    std::vector<float> logits(static_cast<size_t>(m * columns));
    kernels_->multiply(q_words.data(), words(dim), k_words.data(), columns, logits.data(), columns,
                       m, columns, words(dim), /*accumulate=*/false);
    const float scale = 0.25f;
    std::vector<float> out(static_cast<size_t>(m * padded), 1.0f);  // From an earlier tile,
    std::vector<float> maximum(static_cast<size_t>(m), 0.5f);       // whose maximum was 0.5
    std::vector<float> sum(static_cast<size_t>(m), 2.0f);           // and whose sum 2.
    std::vector<float> only_maximum = maximum;
    std::vector<float> only_sum = sum;
    std::vector<double> expected_sum(static_cast<size_t>(m), 0.0);
    std::vector<double> expected(static_cast<size_t>(m * dim), 0.0);
    for (int64_t r = 0; r < m; ++r) {
      double top = 0.5;
      std::vector<double> exact;
      for (int64_t j = 0; j < visible; ++j) {
        double logit = 0;
        for (int64_t d = 0; d < dim; ++d) logit += double{q[r * dim + d]} * k[j * dim + d];
        ASSERT_NEAR(logits[r * columns + j], logit, 1e-5 * (1 + std::abs(logit)));
        exact.push_back(scale * logit);
        top = std::max(top, exact.back());
      }
      expected_sum[r] = 2 * std::exp(0.5 - top);
      for (int64_t d = 0; d < dim; ++d) expected[r * dim + d] = std::exp(0.5 - top);
      for (int64_t j = 0; j < visible; ++j) {
        expected_sum[r] += std::exp(exact[j] - top);
        for (int64_t d = 0; d < dim; ++d) {
          expected[r * dim + d] += std::exp(exact[j] - top) * v[j * dim + d];
        }
      }
      kernels_->normaliser_step(logits.data() + r * columns, columns, visible, scale,
                                &only_maximum[r], &only_sum[r]);
      kernels_->softmax_step(logits.data() + r * columns, columns, visible, scale, &maximum[r],
                             &sum[r], out.data() + r * padded, padded);
      ASSERT_NEAR(maximum[r], top, 1e-5);
      ASSERT_EQ(only_maximum[r], maximum[r]);
      ASSERT_NEAR(sum[r] / expected_sum[r], 1, 1e-5);
      ASSERT_EQ(only_sum[r], sum[r]);
    }
    kernels_->multiply(logits.data(), columns, v_words.data(), padded, out.data(), padded, m,
                       padded, words(keys), /*accumulate=*/true);
    for (int64_t r = 0; r < m; ++r) {
      // A weight in bf16 is off by 2^-9 of itself at most; weights sum to `sum`, values reach 2.
      const double tolerance = expected_sum[r] * (per_word == 2 ? 2 * 0x1p-9 : 1e-5);
      for (int64_t d = 0; d < dim; ++d) {
        ASSERT_NEAR(out[r * padded + d], expected[r * dim + d], tolerance) << r << ", " << d;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Instructions, CpuKernelsTest,
                         ::testing::Values(&Avx512Bf16Kernels, &Avx512Kernels, &Avx2Kernels,
                                           &BaselineKernels));

// Equal bits whatever the number of threads, also while several callers share the backend.
TEST(CpuBackendTest, ResultsDoNotDependOnThreads) {
  const int64_t rows = 300;
  std::vector<float> data(static_cast<size_t>(rows * 128));
  for (size_t i = 0; i < data.size(); ++i) data[i] = std::sin(static_cast<float>(i));
  const auto run = [&](Backend& backend) {
    auto q = *backend.Allocate(DType::kF32, rows, 128);
    auto out = *backend.Allocate(DType::kF32, rows, 128);
    auto keys = *backend.Allocate(DType::kF32, rows, 64);
    EXPECT_TRUE(backend.Upload(std::as_bytes(std::span<const float>(data)), q).ok());
    EXPECT_TRUE(
        backend.Upload(std::as_bytes(std::span<const float>(data).first(rows * 64)), keys).ok());
    const KvLayerView tail{.keys = keys.data(),
                           .values = keys.data(),
                           .dtype = DType::kF32,
                           .kv_heads = 1,
                           .capacity = rows,
                           .head_dim = 64};
    EXPECT_TRUE(backend
                    .Attention({.q = q,
                                .span_dtype = DType::kF32,
                                .tail = tail,
                                .tail_rows = rows,
                                .scale = 0.125f,
                                .out = out})
                    .ok());
    std::vector<float> result(data.size());
    EXPECT_TRUE(backend.Download(out, std::as_writable_bytes(std::span<float>(result))).ok());
    return result;
  };
  const std::vector<float> expected = run(*MakeCpuBackend({.threads = 1}));
  const auto shared = MakeCpuBackend({.threads = 3});
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 3; ++round) EXPECT_EQ(run(*shared), expected);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(CpuBackendTest, UnknownInstructionsAreNoBackend) {
  EXPECT_EQ(MakeCpuBackend({.kernels = "neon"}), nullptr);
}

}  // namespace
}  // namespace kvtier
