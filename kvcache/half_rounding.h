// fp16 numbers on a given side of a value, for scales that must cover a range. Plain functions:
// any thread may call. constexpr, so that device code may call them, too.
#ifndef KVTIER_KVCACHE_HALF_ROUNDING_H_
#define KVTIER_KVCACHE_HALF_ROUNDING_H_

#include "base/half.h"

namespace kvtier {

inline constexpr float kHalfMax = 65504.0f;

// The next fp16 towards +inf. REQUIRES: finite. The largest one gives +inf.
constexpr float16 NextHalfUp(float16 value) {
  if (value.bits == 0x8000) return float16::FromBits(1);  // -0: the smallest subnormal.
  const bool negative = (value.bits & 0x8000) != 0;
  return float16::FromBits(static_cast<uint16_t>(negative ? value.bits - 1 : value.bits + 1));
}

// The smallest fp16 that is not below `value`; +inf above kHalfMax. REQUIRES: not NaN.
constexpr float16 RoundUpToHalf(double value) {
  // Rounding twice to nearest is off by at most one place, on either side.
  float16 half(static_cast<float>(value));
  if (static_cast<double>(static_cast<float>(half)) < value) half = NextHalfUp(half);
  return half;
}

// The largest fp16 that is not above `value`; -inf below -kHalfMax. REQUIRES: not NaN.
constexpr float16 RoundDownToHalf(double value) {
  const float16 half = RoundUpToHalf(-value);
  return float16::FromBits(static_cast<uint16_t>(half.bits ^ 0x8000));
}

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_HALF_ROUNDING_H_
