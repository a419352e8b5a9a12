#include <cmath>
#include <cstdint>

#include "cuda/grid_stride.h"
#include "cuda/math/order_key.h"
#include "cuda/rank_bands.h"

namespace kvtier {
namespace {

constexpr int kThreads = kStrideThreads;
constexpr int kWarps = kThreads / kWarpThreads;

KVTIER_KERNEL void ScoreKeysKernel(ScoreKeysParams p) {
  // Above the key of every score that is not refused; their complements are below it.
  constexpr uint32_t kKeyOfInfinity = 0xFF80'0000u;
  for (int64_t i = FirstIndex(); i < p.pairs; i += IndexStep()) {
    const uint32_t key = OrderKey(p.scores[i]);
    if (key >= kKeyOfInfinity) AtomicMax(p.refused, ~static_cast<uint32_t>(i));
    p.keys[i] = p.first_token_first && i % p.tokens == 0 ? 0 : ~key;
    p.values[i] = static_cast<uint32_t>(i);
  }
}

KVTIER_KERNEL void RowKeysKernel(RowKeysParams p) {
  for (int64_t j = FirstIndex(); j < p.pairs; j += IndexStep()) {
    p.keys[j] = static_cast<uint32_t>(p.order[j] / p.tokens);
  }
}

KVTIER_KERNEL void AssignBandsKernel(AssignBandsParams p) {
  for (int64_t j = FirstIndex(); j < p.pairs; j += IndexStep()) {
    const int64_t rank = j % p.period;
    int band = 0;
    int64_t end = p.ends[0];
    KVTIER_UNROLL
    for (int b = 1; b < kRankBandsMax; ++b) {  // Unrolled, so that `ends` stays in constant memory.
      if (b < p.bands && rank >= p.ends[b - 1]) {
        band = b;
        end = p.ends[b];
      }
    }
    p.band[p.order[j]] = static_cast<uint8_t>(band);
    if (rank + 1 == end) p.thresholds[j / p.period * p.bands + band] = p.scores[p.order[j]];
  }
}

KVTIER_KERNEL void ScoreMassKernel(ScoreMassParams p) {
  const MassItem item = p.items[BlockX()];
  double sum = 0;
  for (int64_t j = item.begin + ThreadIndex(); j < item.end; j += kThreads) {
    sum += exp(static_cast<double>(p.scores[p.order[j]]));
  }
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  auto* const of_warp = static_cast<double*>(SharedMemory());
  if (ThreadIndex() % kWarpThreads == 0) of_warp[ThreadIndex() / kWarpThreads] = sum;
  BlockSync();
  if (ThreadIndex() != 0) return;
  double all = 0;
  for (int warp = 0; warp < kWarps; ++warp) all += of_warp[warp];
  p.sums[BlockX()] = all;
}

KVTIER_KERNEL void GroupKeysKernel(GroupKeysParams p) {
  for (int64_t i = FirstIndex(); i < p.pairs; i += IndexStep()) {
    p.keys[i] = static_cast<uint32_t>(i / p.tokens * p.bands + p.band[i]);
    p.values[i] = static_cast<uint32_t>(i % p.tokens);
  }
}

KVTIER_KERNEL void GroupStartsKernel(GroupStartsParams p) {
  for (int64_t group = FirstIndex(); group <= p.groups; group += IndexStep()) {
    int64_t begin = 0;
    int64_t end = p.pairs;
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (p.keys[middle] < group) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    p.starts[group] = static_cast<uint32_t>(begin);
  }
}

}  // namespace

DeviceError LaunchScoreKeys(const ScoreKeysParams& p, DeviceStream stream) {
  return LaunchKernel(ScoreKeysKernel, StrideGrid(p.pairs), kThreads, 0, stream, p);
}

DeviceError LaunchRowKeys(const RowKeysParams& p, DeviceStream stream) {
  return LaunchKernel(RowKeysKernel, StrideGrid(p.pairs), kThreads, 0, stream, p);
}

DeviceError LaunchAssignBands(const AssignBandsParams& p, DeviceStream stream) {
  if (p.bands < 1 || p.bands > kRankBandsMax) return kInvalidConfiguration;
  return LaunchKernel(AssignBandsKernel, StrideGrid(p.pairs), kThreads, 0, stream, p);
}

DeviceError LaunchScoreMass(const ScoreMassParams& p, DeviceStream stream) {
  return LaunchKernel(ScoreMassKernel, Grid{.x = p.item_count}, kThreads, kWarps * sizeof(double),
                      stream, p);
}

DeviceError LaunchGroupKeys(const GroupKeysParams& p, DeviceStream stream) {
  return LaunchKernel(GroupKeysKernel, StrideGrid(p.pairs), kThreads, 0, stream, p);
}

DeviceError LaunchGroupStarts(const GroupStartsParams& p, DeviceStream stream) {
  return LaunchKernel(GroupStartsKernel, StrideGrid(p.groups + 1), kThreads, 0, stream, p);
}

}  // namespace kvtier
