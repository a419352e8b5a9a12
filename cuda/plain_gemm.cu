#include <algorithm>
#include <cstdint>

#include "cuda/plain_gemm.h"

namespace kvtier {
namespace {

constexpr int kTile = 16;
constexpr int kDepth = 32;  // Products per step.
constexpr int kThreads = kTile * kTile;
constexpr int kStride = kDepth + 1;  // Neighbouring rows in different banks.
// Blocks for the rows of one tile of outputs; each takes every so many tiles. Far more than run at
// once, and fewer than a grid's second axis has.
constexpr int64_t kRowBlocksMax = 4096;

// Rows [first, first + kTile), columns [k, k + kDepth) of a matrix; zeros past its edges.
KVTIER_DEVICE void LoadTile(const void* from, Element type, int64_t first, int64_t rows, int64_t k,
                            int64_t in, float* to) {
  for (int i = ThreadIndex(); i < kTile * kDepth; i += kThreads) {
    const int64_t row = first + i / kDepth;
    const int64_t column = k + i % kDepth;
    const bool inside = row < rows && column < in;
    to[i / kDepth * kStride + i % kDepth] =
        inside ? LoadElement(from, row * in + column, type) : 0.0f;
  }
}

KVTIER_KERNEL void PlainGemmKernel(GemmParams p) {
  auto* x = static_cast<float*>(SharedMemory());  // [kTile, kStride]
  float* w = x + kTile * kStride;                 // [kTile, kStride]
  const int64_t first_out = int64_t{BlockX()} * kTile;
  const int row = ThreadIndex() / kTile;
  const int out = ThreadIndex() % kTile;
  for (int64_t first_row = int64_t{BlockY()} * kTile; first_row < p.rows;
       first_row += int64_t{GridY()} * kTile) {
    float sum = 0;
    for (int64_t k = 0; k < p.in; k += kDepth) {
      LoadTile(p.x, p.x_type, first_row, p.rows, k, p.in, x);
      LoadTile(p.weights, p.weights_type, first_out, p.out, k, p.in, w);
      BlockSync();
      float part = 0;  // Short sums lose less.
      for (int d = 0; d < kDepth; ++d) part += x[row * kStride + d] * w[out * kStride + d];
      sum += part;
      BlockSync();  // Both tiles have been read.
    }
    if (first_row + row < p.rows && first_out + out < p.out) {
      StoreElement(p.y, (first_row + row) * p.out + first_out + out, p.y_type, sum);
    }
  }
}

}  // namespace

DeviceError LaunchPlainGemm(const GemmParams& p, DeviceStream stream) {
  // Outputs in x, which has no limit that a vocabulary reaches.
  const Grid grid{.x = (p.out + kTile - 1) / kTile,
                  .y = std::min((p.rows + kTile - 1) / kTile, kRowBlocksMax)};
  return LaunchKernel(PlainGemmKernel, grid, kThreads, 2 * kTile * kStride * sizeof(float), stream,
                      p);
}

}  // namespace kvtier
