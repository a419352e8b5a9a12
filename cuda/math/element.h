// Elements of tensors and caches as device code sees them: a type at run time, conversions that
// give the bits of base/half.h on both sides.
#ifndef KVTIER_CUDA_MATH_ELEMENT_H_
#define KVTIER_CUDA_MATH_ELEMENT_H_

#include <cstdint>

#include "base/half.h"
#include "cuda/simt.h"

namespace kvtier {

// The values of DType (kvcache/geometry.h), whose header device code does without.
enum class Element : uint8_t { kF32 = 1, kF16 = 2, kBf16 = 3 };

KVTIER_HOST_DEVICE inline int ElementBytes(Element type) { return type == Element::kF32 ? 4 : 2; }

// Element `index` of an array. The type is the same for all threads, so the branch costs little.
KVTIER_HOST_DEVICE inline float LoadElement(const void* array, int64_t index, Element type) {
  if (type == Element::kF32) return static_cast<const float*>(array)[index];
  const uint16_t bits = static_cast<const uint16_t*>(array)[index];
  return type == Element::kBf16 ? half_internal::BfloatBitsToFloat(bits)
                                : half_internal::HalfBitsToFloat(bits);
}

// Rounds to nearest even.
KVTIER_HOST_DEVICE inline void StoreElement(void* array, int64_t index, Element type, float value) {
  if (type == Element::kF32) {
    static_cast<float*>(array)[index] = value;
    return;
  }
  static_cast<uint16_t*>(array)[index] = type == Element::kBf16
                                             ? half_internal::FloatToBfloatBits(value)
                                             : half_internal::FloatToHalfBits(value);
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_ELEMENT_H_
