// From views of tensors to the parameters of launches, where more than one part needs them.
#ifndef KVTIER_CUDA_LAUNCH_PARAMS_H_
#define KVTIER_CUDA_LAUNCH_PARAMS_H_

#include <algorithm>
#include <cstdint>

#include "base/limits.h"
#include "compressor/backend.h"
#include "cuda/device.h"
#include "cuda/elementwise.h"

namespace kvtier {

static_assert(2 * kRopePairsMax >= limits::kHeadDimMax, "every head_dim can be rotated");

inline Element ElementOf(DType dtype) { return static_cast<Element>(dtype); }

// About as many items of attention as keep the device busy: blocks that a multiprocessor runs at
// once (shared memory of 56 KB each) and some in waiting.
inline int64_t ItemsWanted(const Device& device) { return int64_t{6} * device.multiprocessors(); }

// Without a position.
inline RopeParams MakeRopeParams(const TensorView& x, int64_t heads, const RopeTable& table) {
  RopeParams params;
  params.x = x.data;
  params.type = ElementOf(x.dtype);
  params.rows = x.rows;
  params.heads = heads;
  params.pairs = static_cast<int>(table.inverse_frequencies.size());
  params.scaling = table.attention_scaling;
  std::copy(table.inverse_frequencies.begin(), table.inverse_frequencies.end(), params.frequencies);
  return params;
}

// Without a row.
inline AppendKvParams MakeAppendKvParams(const TensorView& k, const TensorView& v,
                                         const KvLayerView& layer) {
  return {.k = k.data,
          .v = v.data,
          .type = ElementOf(k.dtype),
          .keys = layer.keys,
          .values = layer.values,
          .layer_type = ElementOf(layer.dtype),
          .rows = k.rows,
          .kv_heads = layer.kv_heads,
          .head_dim = layer.head_dim,
          .capacity = layer.capacity};
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_LAUNCH_PARAMS_H_
