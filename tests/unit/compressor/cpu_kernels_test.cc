#include "compressor/cpu_kernels.h"

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
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
    kernels_->load_transposed(bits.data(), element, 256, 256, transposed.data(), 256);
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
  kernels_->softmax_step(logits.data(), 16, 0, &maximum, &sum, out.data(), 16);
  EXPECT_EQ(sum, 0);
  EXPECT_TRUE(std::isinf(maximum));
  for (float weight : logits) EXPECT_EQ(weight, 0);
}

INSTANTIATE_TEST_SUITE_P(Instructions, CpuKernelsTest,
                         ::testing::Values(&Avx512Kernels, &Avx2Kernels, &BaselineKernels));

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
