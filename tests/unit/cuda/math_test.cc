// What device code computes for one element, on the CPU, against its twins.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "base/half.h"
#include "base/status_matchers.h"
#include "cuda/math/activation.h"
#include "cuda/math/element.h"
#include "cuda/math/order_key.h"
#include "cuda/math/row_decode.h"
#include "cuda/math/softmax.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/codec_id.h"
#include "kvcache/geometry.h"
#include "kvcache/row_codec.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ElementTest, HasTheNumbersOfDType) {
  EXPECT_EQ(static_cast<int>(Element::kF32), static_cast<int>(DType::kF32));
  EXPECT_EQ(static_cast<int>(Element::kF16), static_cast<int>(DType::kF16));
  EXPECT_EQ(static_cast<int>(Element::kBf16), static_cast<int>(DType::kBf16));
  EXPECT_EQ(static_cast<int>(RowCode::kRaw), static_cast<int>(CodecId::kRaw));
  EXPECT_EQ(static_cast<int>(RowCode::kInt8), static_cast<int>(CodecId::kInt8));
  EXPECT_EQ(static_cast<int>(RowCode::kInt4), static_cast<int>(CodecId::kInt4));
}

TEST(ElementTest, StoresAndLoadsEveryPatternOfSixteenBits) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float b = LoadElement(&half, 0, Element::kBf16);
    const float h = LoadElement(&half, 0, Element::kF16);
    ASSERT_EQ(std::bit_cast<uint32_t>(b),
              std::bit_cast<uint32_t>(static_cast<float>(bfloat16::FromBits(half))));
    uint16_t back[2] = {};
    StoreElement(back, 0, Element::kBf16, b);
    StoreElement(back, 1, Element::kF16, h);
    if (!std::isnan(b)) {
      ASSERT_EQ(back[0], half);
    }
    if (!std::isnan(h)) {
      ASSERT_EQ(back[1], half);
    }
  }
}

TEST(OrderKeyTest, KeepsTheOrderOfFloats) {
  std::vector<float> values = {-kInfinity, kInfinity, 0.0f, 1e-45f, -1e-45f, 3e38f, -3e38f, -1, 1};
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 20000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isnan(value)) values.push_back(value == 0 ? 0 : value);
  }
  std::sort(values.begin(), values.end());
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(ValueOfOrderKey(OrderKey(values[i])), values[i]);
    ASSERT_GT(OrderKey(values[i]), kOrderKeyOfNothing);
    ASSERT_LT(OrderKey(values[i]), kOrderKeyOfNan);
    if (i > 0) {
      ASSERT_EQ(values[i - 1] < values[i], OrderKey(values[i - 1]) < OrderKey(values[i]));
    }
  }
  EXPECT_EQ(OrderKey(-0.0f), OrderKey(0.0f));
  EXPECT_EQ(OrderKey(std::nanf("")), kOrderKeyOfNan);
  EXPECT_EQ(OrderKey(-std::nanf("")), kOrderKeyOfNan);
  EXPECT_TRUE(std::isnan(ValueOfOrderKey(kOrderKeyOfNan)));
  EXPECT_EQ(ValueOfOrderKey(kOrderKeyOfNothing), -kInfinity);
}

TEST(RowDecodeTest, GivesTheBitsOfTheCodec) {
  std::mt19937_64 random(TestSeed());
  for (const uint32_t dim : {1u, 7u, 64u, 128u}) {
    for (const float size : {1e-6f, 1.0f, 3000.0f}) {
      std::uniform_real_distribution<float> uniform(-size, size);
      std::vector<float> row(dim);
      for (float& x : row) x = uniform(random);
      for (const CodecId id : {CodecId::kInt8, CodecId::kInt4}) {
        const RowCodec& codec = *FindRowCodec(id);
        const auto code = static_cast<RowCode>(id);
        ASSERT_EQ(static_cast<uint64_t>(RowCodeBytes(code, Element::kBf16, dim)),
                  codec.code_bytes(dim));
        ASSERT_EQ(static_cast<uint64_t>(RowScaleBytes(code)), codec.scale_bytes());
        std::vector<std::byte> codes(codec.code_bytes(dim));
        alignas(2) std::byte scales[4];
        KVTIER_ASSERT_OK(codec.EncodeRow(row, codes.data(), scales));
        std::vector<float> decoded(dim);
        codec.DecodeRow(codes.data(), scales, decoded);
        for (uint32_t d = 0; d < dim; ++d) {
          ASSERT_EQ(DecodeElement(codes.data(), scales, code, Element::kBf16, d), decoded[d]);
        }
      }
    }
  }
}

TEST(ActivationTest, EqualsTheDefinitionInDouble) {
  const double root = std::sqrt(2 / std::acos(-1.0));
  for (double x = -100; x < 100; x += 0.0137) {
    const auto f = static_cast<float>(x);
    const double g = f;
    ASSERT_NEAR(Silu(f), g / (1 + std::exp(-g)), 1e-6 + 1e-6 * std::abs(g));
    const double gelu = g / 2 * (1 + std::tanh(root * (g + 0.044715 * g * g * g)));
    ASSERT_NEAR(GeluTanh(f), gelu, 1e-6 + 1e-6 * std::abs(gelu));
  }
}

TEST(ActivationTest, RotationIsThatOfTheRoundedAngle) {
  std::mt19937_64 random(TestSeed());
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (const float position : {0.0f, 1.0f, 12345.0f, 131071.0f, 170000.0f}) {
    for (int i = 0; i < 200; ++i) {
      const float frequency = std::abs(uniform(random));
      const float a = uniform(random);
      const float b = uniform(random);
      const double angle = position * frequency;  // Rounded to fp32 first.
      const RotatedPair pair = Rotate(a, b, position, frequency, 1);
      ASSERT_NEAR(pair.first, a * std::cos(angle) - b * std::sin(angle), 5e-7);
      ASSERT_NEAR(pair.second, b * std::cos(angle) + a * std::sin(angle), 5e-7);
    }
  }
}

// Any split of a row's logits into tiles and parts gives one normaliser.
TEST(SoftmaxTest, PartsMergeToTheWhole) {
  std::mt19937_64 random(TestSeed());
  std::normal_distribution<float> normal(0, 30);
  for (int attempt = 0; attempt < 200; ++attempt) {
    std::vector<float> logits(1 + random() % 300);
    for (float& x : logits) x = random() % 10 == 0 ? -kInfinity : normal(random);
    logits[random() % logits.size()] = 5;  // At least one.
    double sum = 0;
    const double top = *std::max_element(logits.begin(), logits.end());
    for (float x : logits) sum += std::exp2(x - top);
    const double whole = top + std::log2(sum);
    std::vector<float> parts;
    size_t at = 0;
    while (at < logits.size()) {
      const size_t end = std::min(logits.size(), at + 1 + random() % 90);
      float largest = MinusInfinity();
      float part_sum = 0;
      for (; at < end; ++at) {
        const float next = std::max(largest, logits[at]);
        part_sum = part_sum * SoftmaxWeight(largest, next) + SoftmaxWeight(logits[at], next);
        largest = next;
      }
      parts.push_back(LogSum2(largest, part_sum));
    }
    const float merged_top = *std::max_element(parts.begin(), parts.end());
    float merged = 0;
    for (float part : parts) merged += PartWeight(part, merged_top);
    ASSERT_NEAR(LogSum2(merged_top, merged), whole, 1e-4);
    double weights = 0;
    for (float part : parts) weights += PartWeight(part, static_cast<float>(whole));
    ASSERT_NEAR(weights, 1, 1e-4);
  }
}

TEST(SoftmaxTest, NothingSeenHasNoWeight) {
  EXPECT_EQ(SoftmaxWeight(-kInfinity, -kInfinity), 0);
  EXPECT_EQ(SoftmaxWeight(-kInfinity, 3), 0);
  EXPECT_EQ(LogSum2(-kInfinity, 0), -kInfinity);
  EXPECT_TRUE(std::isnan(SoftmaxWeight(std::nanf(""), 0)));
}

}  // namespace
}  // namespace kvtier
