#include "base/half.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }

// The plain twins read the definitions of the formats with ldexp.
double PlainValue(uint16_t bits, int mantissa_bits, int bias) {
  const int exponent_bits = 15 - mantissa_bits;
  const int exponent = (bits & 0x7FFF) >> mantissa_bits;
  const double mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * kInfinity;
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}
double PlainHalf(uint16_t bits) { return PlainValue(bits, 10, 15); }
double PlainBfloat(uint16_t bits) { return PlainValue(bits, 7, 127); }

// The nearest of all positive finite values, ties to the even pattern, found by search over what
// Plain says; past the last one half a step leads to infinity.
template <double (*kPlain)(uint16_t)>
uint16_t PlainRound(float value, uint16_t infinity) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(static_cast<double>(value));
  uint16_t below = 0;
  uint16_t above = infinity;
  while (above - below > 1) {
    const uint16_t middle = static_cast<uint16_t>((below + above) / 2);
    (kPlain(middle) <= magnitude ? below : above) = middle;
  }
  // Infinity stands where the next finite value would be.
  const double step_end = above == infinity
                              ? 2 * kPlain(below) - kPlain(static_cast<uint16_t>(below - 1))
                              : kPlain(above);
  const double to_below = magnitude - kPlain(below);
  const double to_above = step_end - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && below % 2 == 1);
  return static_cast<uint16_t>(sign | (up ? above : below));
}

TEST(Float16Test, EveryValueConvertsExactlyAndBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    const float value = static_cast<float>(float16::FromBits(bits));
    const double expected = PlainHalf(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0);
      ASSERT_EQ(float16(value).bits, bits | 0x0200) << "the payload, made quiet";
    } else {
      ASSERT_EQ(value, expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      ASSERT_EQ(float16(value).bits, bits);
    }
  }
}

TEST(Bfloat16Test, EveryValueConvertsExactlyAndBack) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    const float value = static_cast<float>(bfloat16::FromBits(bits));
    const double expected = PlainBfloat(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_EQ(bfloat16(value).bits, bits | 0x0040) << "the payload, made quiet";
    } else {
      ASSERT_EQ(value, expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      ASSERT_EQ(bfloat16(value).bits, bits);
    }
  }
}

// Around each value of the format: the middle to the next one, and the floats beside the middle.
template <typename Half, double (*kPlain)(uint16_t)>
void ExpectTiesGoToEven(uint16_t infinity) {
  for (uint16_t bits = 0; bits + 1 < infinity; ++bits) {
    const uint16_t next = static_cast<uint16_t>(bits + 1);
    const float middle = static_cast<float>((kPlain(bits) + kPlain(next)) / 2);
    ASSERT_EQ(Half(middle).bits, bits % 2 == 0 ? bits : next) << bits;
    ASSERT_EQ(Half(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(Half(std::nextafter(middle, kInfinity)).bits, next);
    ASSERT_EQ(Half(-middle).bits, (bits % 2 == 0 ? bits : next) | 0x8000);
  }
}

TEST(Float16Test, TiesGoToEven) { ExpectTiesGoToEven<float16, PlainHalf>(0x7C00); }
TEST(Bfloat16Test, TiesGoToEven) { ExpectTiesGoToEven<bfloat16, PlainBfloat>(0x7F80); }

TEST(Float16Test, OverflowsToInfinityFromTheMiddlePastTheLargestValue) {
  EXPECT_EQ(float16(65504.0f).bits, 0x7BFF);
  EXPECT_EQ(float16(std::nextafter(65520.0f, 0.0f)).bits, 0x7BFF);
  EXPECT_EQ(float16(65520.0f).bits, 0x7C00);
  EXPECT_EQ(float16(65536.0f).bits, 0x7C00);
  EXPECT_EQ(float16(std::numeric_limits<float>::max()).bits, 0x7C00);
  EXPECT_EQ(float16(-65520.0f).bits, 0xFC00);
}

TEST(Bfloat16Test, OverflowsToInfinityFromTheMiddlePastTheLargestValue) {
  EXPECT_EQ(bfloat16(FromBits(0x7F7F0000)).bits, 0x7F7F);
  EXPECT_EQ(bfloat16(FromBits(0x7F7F7FFF)).bits, 0x7F7F);
  EXPECT_EQ(bfloat16(FromBits(0x7F7F8000)).bits, 0x7F80);
  EXPECT_EQ(bfloat16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_EQ(bfloat16(-std::numeric_limits<float>::max()).bits, 0xFF80);
}

TEST(HalfTest, SpecialValues) {
  EXPECT_EQ(float16(0.0f).bits, 0x0000);
  EXPECT_EQ(float16(-0.0f).bits, 0x8000);
  EXPECT_EQ(float16(1.0f).bits, 0x3C00);
  EXPECT_EQ(float16(kInfinity).bits, 0x7C00);
  EXPECT_EQ(float16(-kInfinity).bits, 0xFC00);
  EXPECT_EQ(float16(std::numeric_limits<float>::denorm_min()).bits, 0x0000);
  EXPECT_EQ(bfloat16(1.0f).bits, 0x3F80);
  EXPECT_EQ(bfloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(bfloat16(kInfinity).bits, 0x7F80);
  EXPECT_EQ(bfloat16(-kInfinity).bits, 0xFF80);
}

TEST(HalfTest, NanWithPayloadOnlyInTheLowBitsStaysNan) {
  for (const uint32_t bits : {0x7F800001u, 0x7FBFFFFFu, 0xFF800001u, 0x7FC00000u, 0xFFFFFFFFu}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(float16(FromBits(bits))))) << bits;
    EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(FromBits(bits))))) << bits;
    EXPECT_EQ(float16(FromBits(bits)).bits & 0x8000, bits >> 16 & 0x8000) << bits;
    EXPECT_EQ(bfloat16(FromBits(bits)).bits & 0x8000, bits >> 16 & 0x8000) << bits;
  }
}

TEST(HalfTest, RandomFloatsRoundAsThePlainTwinDoes) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 200'000; ++i) {
    // All exponents, and then those that matter to a half.
    uint32_t bits = static_cast<uint32_t>(random());
    if (i % 2 == 1) bits = (bits & 0x807F'FFFFu) | ((100 + bits % 45) << 23);
    const float value = FromBits(bits);
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(float16(value).bits, (PlainRound<PlainHalf>(value, 0x7C00)))
        << std::hexfloat << value;
    ASSERT_EQ(bfloat16(value).bits, (PlainRound<PlainBfloat>(value, 0x7F80)))
        << std::hexfloat << value;
  }
}

TEST(HalfTest, ConversionsAreConstantExpressions) {
  static_assert(float16(0.5f).bits == 0x3800);
  static_assert(static_cast<float>(float16::FromBits(0x0001)) == 0x1p-24f);
  static_assert(static_cast<float>(bfloat16(3.0f)) == 3.0f);
}

TEST(HalfTest, SpansConvertAsTheirElements) {
  std::vector<float> floats = {0.0f, -0.0f, 1.0f / 3, kInfinity, -kInfinity, 70000.0f, 1e-7f, kNan};
  for (int i = 0; i < 50; ++i) floats.push_back(static_cast<float>(i) * 0.37f - 8.0f);
  for (size_t count = 0; count <= floats.size(); ++count) {
    const std::span<const float> from(floats.data(), count);
    std::vector<float16> halves(count);
    std::vector<bfloat16> bfloats(count);
    std::vector<float> from_halves(count);
    std::vector<float> from_bfloats(count);
    ConvertFromFloat(from, std::span<float16>(halves));
    ConvertFromFloat(from, std::span<bfloat16>(bfloats));
    ConvertToFloat(std::span<const float16>(halves), from_halves);
    ConvertToFloat(std::span<const bfloat16>(bfloats), from_bfloats);
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(halves[i].bits, float16(from[i]).bits);
      ASSERT_EQ(bfloats[i].bits, bfloat16(from[i]).bits);
      ASSERT_EQ(std::bit_cast<uint32_t>(from_halves[i]),
                std::bit_cast<uint32_t>(static_cast<float>(halves[i])));
      ASSERT_EQ(std::bit_cast<uint32_t>(from_bfloats[i]),
                std::bit_cast<uint32_t>(static_cast<float>(bfloats[i])));
    }
  }
}

TEST(HalfDeathTest, SpansOfDifferentSizesDie) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::vector<float> from(3);
  std::vector<float16> to(2);
  EXPECT_DEATH(ConvertFromFloat(from, std::span<float16>(to)), "3 vs. 2");
}

}  // namespace
}  // namespace kvtier
