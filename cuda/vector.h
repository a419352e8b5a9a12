// 16 bytes, moved by one instruction. Addresses are multiples of 16: a device ends the launch
// otherwise, and so does the emulator.
#ifndef KVTIER_CUDA_VECTOR_H_
#define KVTIER_CUDA_VECTOR_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

struct alignas(16) Vector {
  uint32_t words[4];
};

KVTIER_DEVICE Vector LoadVector(const void* from) {
#if !defined(__CUDACC__)
  host_simt::CheckAligned(from, sizeof(Vector));
#endif
  return *static_cast<const Vector*>(from);
}

KVTIER_DEVICE void StoreVector(void* to, Vector vector) {
#if !defined(__CUDACC__)
  host_simt::CheckAligned(to, sizeof(Vector));
#endif
  *static_cast<Vector*>(to) = vector;
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_VECTOR_H_
