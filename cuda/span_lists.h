// Spans of rows as kernels read them (cuda/attention.h), collected head by head on the host.
#ifndef KVTIER_CUDA_SPAN_LISTS_H_
#define KVTIER_CUDA_SPAN_LISTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compressor/backend.h"
#include "cuda/attention.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// The spans of all heads, each head's one after the other. Not thread-safe.
struct SpanLists {
  std::vector<KeySpan> spans;
  std::vector<int64_t> begin = {0};  // [heads + 1] into spans
  std::vector<int64_t> rows;         // [heads] ended

  void Add(KeySpan span) {
    if (span.rows == 0) return;
    span.begin = open_rows_;
    open_rows_ += span.rows;
    spans.push_back(span);
  }
  void EndHead() {
    begin.push_back(static_cast<int64_t>(spans.size()));
    rows.push_back(open_rows_);
    open_rows_ = 0;
  }

 private:
  int64_t open_rows_ = 0;  // Of the head that is being filled.
};

// Rows [first, first + rows) of a head of a layer.
inline KeySpan LayerSpan(const KvLayerView& layer, int64_t head, int64_t first, int64_t rows) {
  const int64_t at = (head * layer.capacity + first) * layer.head_dim * DTypeBytes(layer.dtype);
  KeySpan span;
  span.keys = static_cast<const std::byte*>(layer.keys) + at;
  // A score reads no values and need not have any.
  span.values = layer.values == nullptr ? nullptr : static_cast<std::byte*>(layer.values) + at;
  span.rows = rows;
  return span;
}

inline KeySpan ToKeySpan(const RowSpan& span) {
  return {.keys = span.keys,
          .values = span.values,
          .key_scales = span.key_scales,
          .value_scales = span.value_scales,
          .rows = span.rows,
          .code = static_cast<RowCode>(span.codec)};
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_SPAN_LISTS_H_
