// Floats as unsigned integers in the same order, for integer maxima and radix sorts: exact, and
// free of the order in which threads arrive.
#ifndef KVTIER_CUDA_MATH_ORDER_KEY_H_
#define KVTIER_CUDA_MATH_ORDER_KEY_H_

#include <bit>
#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

// Below every key, so that memory set to zero is the maximum of nothing.
inline constexpr uint32_t kOrderKeyOfNothing = 0;
// Above every number: a NaN wins any maximum and so reaches whoever refuses it.
inline constexpr uint32_t kOrderKeyOfNan = 0xFFFF'FFFFu;

// a < b implies OrderKey(a) < OrderKey(b). -0 and 0 have one key.
KVTIER_HOST_DEVICE inline uint32_t OrderKey(float value) {
  if (value != value) return kOrderKeyOfNan;
  if (value == 0) value = 0;  // -0 becomes 0.
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits & 0x8000'0000u) != 0 ? ~bits : bits | 0x8000'0000u;
}

// Back again; NaN for the NaN's key, -inf for that of nothing.
KVTIER_HOST_DEVICE inline float ValueOfOrderKey(uint32_t key) {
  if (key == kOrderKeyOfNan) return std::bit_cast<float>(0x7FC0'0000u);
  if (key == kOrderKeyOfNothing) return std::bit_cast<float>(0xFF80'0000u);
  return std::bit_cast<float>((key & 0x8000'0000u) != 0 ? key & 0x7FFF'FFFFu : ~key);
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_ORDER_KEY_H_
