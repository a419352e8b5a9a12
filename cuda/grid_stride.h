// Kernels that do the same for each of many elements: a grid that fits any device, over which each
// thread strides.
//
//   for (int64_t i = FirstIndex(); i < p.count; i += IndexStep()) ...
#ifndef KVTIER_CUDA_GRID_STRIDE_H_
#define KVTIER_CUDA_GRID_STRIDE_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

// Threads of a block of such a launch.
inline constexpr int kStrideThreads = 256;

// For `count` elements: enough blocks for any device; of more elements each thread takes several.
inline Grid StrideGrid(int64_t count) {
  constexpr int64_t kBlocksMax = 4096;
  const int64_t blocks = (count + kStrideThreads - 1) / kStrideThreads;
  return {.x = blocks < kBlocksMax ? blocks : kBlocksMax};
}

KVTIER_DEVICE int64_t FirstIndex() { return int64_t{BlockX()} * ThreadCount() + ThreadIndex(); }
KVTIER_DEVICE int64_t IndexStep() { return int64_t{GridX()} * ThreadCount(); }

}  // namespace kvtier

#endif  // KVTIER_CUDA_GRID_STRIDE_H_
