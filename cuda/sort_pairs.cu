#include <cstdint>
#include <limits>

#include "cuda/sort_pairs.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>
#endif

namespace kvtier {
namespace {

bool Fits(const SortPairsParams& p) {
  return p.count >= 0 && p.count <= std::numeric_limits<int32_t>::max();
}

#if defined(__CUDACC__)

// CUB's convention: without scratch memory only `bytes` is written.
DeviceError Sort(SortPairsParams& p, void* scratch, size_t& bytes, DeviceStream stream) {
  cub::DoubleBuffer<uint32_t> keys(p.keys, p.spare_keys);
  cub::DoubleBuffer<uint32_t> values(p.values, p.spare_values);
  cudaGetLastError();  // CUB reads it: one that an earlier call left behind is not the sort's.
  const cudaError_t error =
      cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, values, static_cast<int32_t>(p.count),
                                      0, p.bits, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) {
    cudaGetLastError();  // Read, so that no later call reports it.
    return error;
  }
  p.keys = keys.Current();
  p.values = values.Current();
  p.spare_keys = keys.Alternate();
  p.spare_values = values.Alternate();
  return error;
}

#else

// Ends where a radix sort of eight bits a pass does, and leaves nothing of use in the spare arrays.
DeviceError Sort(SortPairsParams& p, void* scratch, size_t& bytes, DeviceStream /*stream*/) {
  bytes = 1;
  if (scratch == nullptr) return 0;
  const uint32_t mask =
      p.bits >= 32 ? ~0u : (1u << p.bits) - 1;  // As CUB: other bits are not read.
  std::vector<int64_t> order(p.count);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (p.keys[a] & mask) < (p.keys[b] & mask); });
  for (int64_t i = 0; i < p.count; ++i) {
    p.spare_keys[i] = p.keys[order[i]];
    p.spare_values[i] = p.values[order[i]];
  }
  const int passes = (p.bits + 7) / 8;
  if (passes % 2 == 1) {
    std::swap(p.keys, p.spare_keys);
    std::swap(p.values, p.spare_values);
  } else {
    std::copy_n(p.spare_keys, p.count, p.keys);
    std::copy_n(p.spare_values, p.count, p.values);
  }
  std::fill_n(p.spare_keys, p.count, ~0u);
  std::fill_n(p.spare_values, p.count, ~0u);
  return 0;
}

#endif

}  // namespace

DeviceError SortPairsScratch(const SortPairsParams& p, uint64_t& bytes) {
  if (!Fits(p)) return kInvalidConfiguration;
  size_t needed = 0;
  SortPairsParams sizes = p;
  const DeviceError error = Sort(sizes, nullptr, needed, nullptr);
  bytes = needed;
  return error;
}

DeviceError LaunchSortPairs(SortPairsParams& p, DeviceStream stream) {
  uint64_t needed = 0;
  const DeviceError error = SortPairsScratch(p, needed);
  if (error != 0) return error;
  if (p.scratch == nullptr || p.scratch_bytes < needed) return kInvalidConfiguration;
  size_t bytes = p.scratch_bytes;
  return Sort(p, p.scratch, bytes, stream);
}

}  // namespace kvtier
