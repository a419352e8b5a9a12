#include "compressor/dense_cache.h"

#include <utility>

#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier {

absl::StatusOr<DenseCache> DenseCache::Create(Backend& backend, const Geometry& geometry,
                                              int64_t capacity) {
  KVTIER_RETURN_IF_ERROR(geometry.Validate());
  // Context, system prompt and a repeat input share a cache's positions.
  if (capacity < 0 || capacity > 4 * int64_t{limits::kContextTokensMax}) {
    return absl::InvalidArgumentError("dense cache: capacity out of range");
  }
  DenseCache cache;
  cache.geometry_ = geometry;
  cache.capacity_ = capacity;
  const int64_t rows = int64_t{geometry.kv_heads} * capacity;
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    KVTIER_ASSIGN_OR_RETURN(Tensor keys, backend.Allocate(geometry.dtype, rows, geometry.head_dim));
    KVTIER_ASSIGN_OR_RETURN(Tensor values,
                            backend.Allocate(geometry.dtype, rows, geometry.head_dim));
    cache.keys_.push_back(std::move(keys));
    cache.values_.push_back(std::move(values));
  }
  return cache;
}

KvLayerView DenseCache::layer(int64_t index) const {
  return {.keys = keys_[static_cast<size_t>(index)].data(),
          .values = values_[static_cast<size_t>(index)].data(),
          .dtype = geometry_.dtype,
          .kv_heads = geometry_.kv_heads,
          .capacity = capacity_,
          .head_dim = geometry_.head_dim};
}

uint64_t DenseCache::bytes() const { return EstimateBytes(geometry_, capacity_); }

uint64_t DenseCache::EstimateBytes(const Geometry& geometry, int64_t capacity) {
  return static_cast<uint64_t>(capacity) * geometry.dense_token_bytes();
}

}  // namespace kvtier
