#include <cstdint>

#include "cuda/grid_stride.h"
#include "cuda/math/order_key.h"
#include "cuda/score_table.h"

namespace kvtier {
namespace {

KVTIER_KERNEL void FillScoresKernel(FillScoresParams p) {
  for (int64_t i = FirstIndex(); i < p.rows * p.count; i += IndexStep()) {
    const int64_t row = i / p.count;
    p.scores[row * p.tokens + p.begin + i % p.count] = p.values[row];
  }
}

KVTIER_DEVICE uint32_t Larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

KVTIER_KERNEL void InspectScoresKernel(InspectScoresParams p) {
  // The keys of all finite numbers lie between these two; a NaN's is above both.
  constexpr uint32_t kKeyOfMinusInfinity = 0x007F'FFFFu;
  constexpr uint32_t kKeyOfInfinity = 0xFF80'0000u;
  const int64_t columns = p.tokens - p.first_token;
  uint32_t not_finite = 0;
  uint32_t best = kOrderKeyOfNothing;
  for (int64_t i = FirstIndex(); i < p.rows * columns; i += IndexStep()) {
    const int64_t at = i / columns * p.tokens + p.first_token + i % columns;
    const uint32_t key = OrderKey(p.scores[at]);
    if (key <= kKeyOfMinusInfinity || key >= kKeyOfInfinity) {
      not_finite = Larger(not_finite, ~static_cast<uint32_t>(at));
    }
    best = Larger(best, key);
  }
  // One thread of a warp speaks for all.
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    not_finite = Larger(not_finite, ShuffleXor(not_finite, mask));
    best = Larger(best, ShuffleXor(best, mask));
  }
  if (ThreadIndex() % kWarpThreads != 0) return;
  if (not_finite != 0) AtomicMax(&p.findings->not_finite, not_finite);
  AtomicMax(&p.findings->best, best);
}

}  // namespace

DeviceError LaunchFillScores(const FillScoresParams& p, DeviceStream stream) {
  return LaunchKernel(FillScoresKernel, StrideGrid(p.rows * p.count), kStrideThreads, 0, stream, p);
}

DeviceError LaunchInspectScores(const InspectScoresParams& p, DeviceStream stream) {
  return LaunchKernel(InspectScoresKernel, StrideGrid(p.rows * (p.tokens - p.first_token)),
                      kStrideThreads, 0, stream, p);
}

}  // namespace kvtier
