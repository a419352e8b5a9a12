#include <cstdint>
#include <limits>

#include "cuda/sort_pairs.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#include <numeric>
#include <vector>
#endif

namespace kvtier {
namespace {

bool Fits(const SortPairsParams& p) {
  return p.count >= 0 && p.count <= std::numeric_limits<int32_t>::max();
}

#if defined(__CUDACC__)

// CUB's convention: without scratch memory only `bytes` is written.
DeviceError Sort(const SortPairsParams& p, void* scratch, size_t& bytes, DeviceStream stream) {
  return cub::DeviceRadixSort::SortPairs(scratch, bytes, p.keys, p.keys_out, p.values, p.values_out,
                                         static_cast<int32_t>(p.count), 0, p.bits,
                                         static_cast<cudaStream_t>(stream));
}

#else

DeviceError Sort(const SortPairsParams& p, void* scratch, size_t& bytes, DeviceStream /*stream*/) {
  bytes = 1;
  if (scratch == nullptr) return 0;
  const uint32_t mask =
      p.bits >= 32 ? ~0u : (1u << p.bits) - 1;  // As CUB: other bits are not read.
  std::vector<int64_t> order(p.count);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (p.keys[a] & mask) < (p.keys[b] & mask); });
  for (int64_t i = 0; i < p.count; ++i) {
    p.keys_out[i] = p.keys[order[i]];
    p.values_out[i] = p.values[order[i]];
  }
  return 0;
}

#endif

}  // namespace

DeviceError SortPairsScratch(const SortPairsParams& p, uint64_t& bytes) {
  if (!Fits(p)) return kInvalidConfiguration;
  size_t needed = 0;
  const DeviceError error = Sort(p, nullptr, needed, nullptr);
  bytes = needed;
  return error;
}

DeviceError LaunchSortPairs(const SortPairsParams& p, DeviceStream stream) {
  uint64_t needed = 0;
  const DeviceError error = SortPairsScratch(p, needed);
  if (error != 0) return error;
  if (p.scratch == nullptr || p.scratch_bytes < needed) return kInvalidConfiguration;
  size_t bytes = p.scratch_bytes;
  return Sort(p, p.scratch, bytes, stream);
}

}  // namespace kvtier
