// How many keys a block holds at once, and where they lie in its shared memory: rows of floats,
// one float wider than the head so that threads on neighbouring rows touch different banks.
#ifndef KVTIER_CUDA_MATH_KEY_TILE_H_
#define KVTIER_CUDA_MATH_KEY_TILE_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

// 64, 32 or 16: about 33 KB of floats. REQUIRES: head_dim <= 512.
KVTIER_HOST_DEVICE constexpr int KeyTile(int64_t head_dim) {
  return head_dim <= 128 ? 64 : head_dim <= 256 ? 32 : 16;
}

KVTIER_HOST_DEVICE constexpr int64_t KeyTileFloats(int64_t head_dim) {
  return KeyTile(head_dim) * (head_dim + 1);
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_KEY_TILE_H_
