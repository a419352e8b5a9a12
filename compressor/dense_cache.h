// An uncompressed KV cache on a backend: what prefill fills and scoring reads.
#ifndef KVTIER_COMPRESSOR_DENSE_CACHE_H_
#define KVTIER_COMPRESSOR_DENSE_CACHE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "kvcache/geometry.h"

namespace kvtier {

// Move-only. Not thread-safe while it grows; the rows below length() never change once written.
class DenseCache {
 public:
  // RESOURCE_EXHAUSTED when the memory cannot be had.
  static absl::StatusOr<DenseCache> Create(Backend& backend, const Geometry& geometry,
                                           int64_t capacity);
  const Geometry& geometry() const { return geometry_; }
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }  // Rows of every head.
  void SetLength(int64_t length) {
    length_ = length;
  }  // Grow after all layers appended; or drop a tail.
  KvLayerView layer(int64_t index) const;
  uint64_t bytes() const;
  static uint64_t EstimateBytes(const Geometry& geometry, int64_t capacity);

 private:
  DenseCache() = default;
  Geometry geometry_;
  int64_t capacity_ = 0;
  int64_t length_ = 0;
  std::vector<Tensor> keys_;  // [layers], each [kv_heads * capacity, head_dim]
  std::vector<Tensor> values_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DENSE_CACHE_H_
