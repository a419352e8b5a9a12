#include "compressor/dense_spans.h"

namespace kvtier {

DenseSpans::DenseSpans(const DenseCache& cache) {
  const Geometry& geometry = cache.geometry();
  spans_.resize(uint64_t{geometry.layer_count()} * geometry.kv_heads);
  heads_.resize(geometry.layer_count());
  for (uint32_t l = 0; l < geometry.layer_count(); ++l) {
    const KvLayerView layer = cache.layer(l);
    const uint64_t head_bytes = layer.capacity * geometry.row_bytes();
    for (uint32_t h = 0; h < geometry.kv_heads; ++h) {
      RowSpan& span = spans_[uint64_t{l} * geometry.kv_heads + h];
      span.keys = static_cast<const std::byte*>(layer.keys) + h * head_bytes;
      span.values = static_cast<const std::byte*>(layer.values) + h * head_bytes;
      span.rows = static_cast<uint32_t>(cache.length());
      heads_[l].emplace_back(&span, span.rows > 0 ? 1 : 0);
    }
  }
}

}  // namespace kvtier
