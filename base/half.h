// The two 16-bit float formats of checkpoints and KV caches, as storage types: they convert to and
// from float and do nothing else. Rounding is to nearest, ties to even; overflow gives infinity;
// NaN stays NaN (made quiet, with the upper bits of its payload); subnormals are exact. The result
// does not depend on the flush-to-zero mode of the CPU, save for inputs too small for either
// format. Lower-case names, as the arithmetic types they stand beside. Thread-safe.
#ifndef KVTIER_BASE_HALF_H_
#define KVTIER_BASE_HALF_H_

#include <bit>
#include <cstdint>
#include <span>
#include <type_traits>

namespace kvtier {

namespace half_internal {

// Each of the four is free of branches once compiled, so that the loops over spans vectorise.

constexpr float BfloatBitsToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

constexpr uint16_t FloatToBfloatBits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // Half of the last kept place, less one if that place is even. Never carries past infinity.
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  const bool is_nan = (bits & 0x7FFF'FFFFu) > 0x7F80'0000u;
  return static_cast<uint16_t>(is_nan ? quiet_nan : rounded);
}

constexpr float HalfBitsToFloat(uint16_t bits) {
  constexpr uint32_t kExponentMask = 0x0F80'0000u;  // Of a half, moved up by 13 bits.
  const uint32_t moved = (bits & 0x7FFFu) << 13;
  const uint32_t exponent = moved & kExponentMask;
  const uint32_t normal = moved + ((127u - 15u) << 23);
  const uint32_t special = normal + ((128u - 16u) << 23);
  // Read as 2^-14 * (1 + m), then less the 2^-14: exact, and normal in a float.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(normal + (1u << 23)) -
                                                     std::bit_cast<float>(113u << 23));
  const uint32_t magnitude =
      exponent == kExponentMask ? special : (exponent == 0 ? subnormal : normal);
  const uint32_t quiet = magnitude > 0x7F80'0000u ? 0x0040'0000u : 0u;
  return std::bit_cast<float>(magnitude | quiet | (static_cast<uint32_t>(bits & 0x8000u) << 16));
}

constexpr uint16_t FloatToHalfBits(float value) {
  constexpr uint32_t kInfinity = 0x7F80'0000u;
  constexpr uint32_t kOverflow = (127u + 16u) << 23;  // 65536: past it infinity.
  constexpr uint32_t kNormalMin = 113u << 23;         // 2^-14
  constexpr uint32_t kSubnormalMagic = ((127u - 15u) + (23u - 10u) + 1u) << 23;  // 0.5
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFF'FFFFu;
  // The float adder rounds to a multiple of 2^-24, the last place of a subnormal half.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude < kNormalMin ? magnitude : 0u) +
                              std::bit_cast<float>(kSubnormalMagic)) -
      kSubnormalMagic;
  // Rebias; half of the last kept place, less one if that place is even. A carry out of the
  // mantissa reaches the exponent, and infinity from 65520 on.
  const uint32_t normal =
      (magnitude - ((127u - 15u) << 23) + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t nan = 0x7E00u | ((magnitude >> 13) & 0x03FFu);
  const uint32_t special = magnitude > kInfinity ? nan : 0x7C00u;
  const uint32_t half =
      magnitude >= kOverflow ? special : (magnitude < kNormalMin ? subnormal : normal);
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

}  // namespace half_internal

// Sign, 8 bits of exponent, 7 of mantissa: the upper half of a float.
struct bfloat16 {  // NOLINT(readability-identifier-naming)
  uint16_t bits;

  bfloat16() = default;
  constexpr explicit bfloat16(float value) : bits(half_internal::FloatToBfloatBits(value)) {}
  constexpr explicit operator float() const { return half_internal::BfloatBitsToFloat(bits); }
  static constexpr bfloat16 FromBits(uint16_t bits) {
    bfloat16 result(0.0f);
    result.bits = bits;
    return result;
  }
};

// IEEE 754 binary16: sign, 5 bits of exponent, 10 of mantissa. Largest finite value 65504.
struct float16 {  // NOLINT(readability-identifier-naming)
  uint16_t bits;

  float16() = default;
  constexpr explicit float16(float value) : bits(half_internal::FloatToHalfBits(value)) {}
  constexpr explicit operator float() const { return half_internal::HalfBitsToFloat(bits); }
  static constexpr float16 FromBits(uint16_t bits) {
    float16 result(0.0f);
    result.bits = bits;
    return result;
  }
};

static_assert(sizeof(bfloat16) == 2 && std::is_trivially_copyable_v<bfloat16>);
static_assert(sizeof(float16) == 2 && std::is_trivially_copyable_v<float16>);

// to[i] = from[i], converted as above. REQUIRES: same sizes; no overlap.
void ConvertToFloat(std::span<const bfloat16> from, std::span<float> to);
void ConvertToFloat(std::span<const float16> from, std::span<float> to);
void ConvertFromFloat(std::span<const float> from, std::span<bfloat16> to);
void ConvertFromFloat(std::span<const float> from, std::span<float16> to);

}  // namespace kvtier

#endif  // KVTIER_BASE_HALF_H_
