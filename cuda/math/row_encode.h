// The scales and codes of one row (kvcache/row_codec.h), for a warp that has found the row's range.
// The same bits as RowCodec::EncodeRow: scales are rounded in double, codes divided in fp32, and no
// product is added to, which a compiler could fuse.
#ifndef KVTIER_CUDA_MATH_ROW_ENCODE_H_
#define KVTIER_CUDA_MATH_ROW_ENCODE_H_

#include <cstdint>

#include "base/half.h"
#include "cuda/simt.h"
#include "kvcache/half_rounding.h"

namespace kvtier {

inline constexpr int kInt8Levels = 127;  // On either side of zero.
inline constexpr int kInt4Levels = 15;   // Above the minimum.

// Bits of fp16 numbers, and what codes are made from.
struct RowScales {
  uint16_t scale = 0;
  uint16_t minimum = 0;  // int4 only.
  float step = 0;
  float low = 0;
  bool fits = false;  // False: fp16 scales cannot hold the range.
};

KVTIER_HOST_DEVICE constexpr bool IsFiniteHalf(uint16_t bits) {
  return (bits & 0x7C00u) != 0x7C00u;
}

// REQUIRES, of both: the range of a row of finite elements.
KVTIER_HOST_DEVICE inline RowScales Int8Scales(float minimum, float maximum) {
  float magnitude = 0;  // Never -0.
  if (-minimum > magnitude) magnitude = -minimum;
  if (maximum > magnitude) magnitude = maximum;
  const float16 scale = RoundUpToHalf(static_cast<double>(magnitude) / kInt8Levels);
  RowScales scales;
  scales.scale = scale.bits;
  scales.step = half_internal::HalfBitsToFloat(scale.bits);
  scales.fits = IsFiniteHalf(scale.bits);
  return scales;
}

KVTIER_HOST_DEVICE inline RowScales Int4Scales(float minimum, float maximum) {
  float16 lowest = RoundDownToHalf(static_cast<double>(minimum));
  if ((lowest.bits & 0x7FFFu) == 0) lowest = float16::FromBits(0);  // Never -0.
  RowScales scales;
  scales.minimum = lowest.bits;
  scales.low = half_internal::HalfBitsToFloat(lowest.bits);
  const double low = static_cast<double>(scales.low);
  const double width = static_cast<double>(maximum) - low;
  float16 scale = RoundUpToHalf((width > 0 ? width : 0) / kInt4Levels);
  // The quotient was rounded: once more against what must hold, which a double states exactly.
  const double reach =
      kInt4Levels * static_cast<double>(half_internal::HalfBitsToFloat(scale.bits));
  if (low + reach < static_cast<double>(maximum)) scale = NextHalfUp(scale);
  scales.scale = scale.bits;
  scales.step = half_internal::HalfBitsToFloat(scale.bits);
  scales.fits = IsFiniteHalf(lowest.bits) && IsFiniteHalf(scale.bits);
  return scales;
}

KVTIER_HOST_DEVICE inline int8_t Int8Code(const RowScales& scales, float x) {
  const float steps = scales.step == 0 ? 0 : x / scales.step;
  return static_cast<int8_t>(static_cast<int>(steps + (steps < 0 ? -0.5f : 0.5f)));
}

KVTIER_HOST_DEVICE inline int Int4Code(const RowScales& scales, float x) {
  if (scales.step == 0) return 0;
  const int code = static_cast<int>((x - scales.low) / scales.step + 0.5f);
  return code < kInt4Levels ? code : kInt4Levels;
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_ROW_ENCODE_H_
