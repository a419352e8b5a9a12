// A stable sort of pairs by their keys, ascending: CUB's radix sort under nvcc, std::stable_sort
// where kernels are emulated. Equal keys keep their order, so the result is the same everywhere.
//
// Each pass moves the pairs from one pair of arrays to the other, so that nothing but the two and a
// little scratch memory is needed.
//
// Layout: keys and values [count]. Requirements: the arrays and the scratch memory do not overlap;
// keys below 2^bits; count below 2^31. Launch: CUB's own kernels, in stream order; allocates
// nothing.
#ifndef KVTIER_CUDA_SORT_PAIRS_H_
#define KVTIER_CUDA_SORT_PAIRS_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

struct SortPairsParams {
  uint32_t* keys = nullptr;
  uint32_t* values = nullptr;
  uint32_t* spare_keys = nullptr;
  uint32_t* spare_values = nullptr;
  int64_t count = 0;
  int bits = 32;  // Of the keys; fewer cost fewer passes.
  void* scratch = nullptr;
  uint64_t scratch_bytes = 0;
};

// Scratch memory that LaunchSortPairs needs for `params.count` pairs; pointers are not read.
DeviceError SortPairsScratch(const SortPairsParams& params, uint64_t& bytes);

// Afterwards `keys` and `values` of `params` point to what is sorted: where they pointed before, or
// to what was spare (the other way round for the spare ones). The spare arrays hold anything.
// kInvalidConfiguration: more pairs than can be counted, less scratch memory than is needed.
DeviceError LaunchSortPairs(SortPairsParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_SORT_PAIRS_H_
