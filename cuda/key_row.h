// Which keys of a head there are, and where the row of one lies, found by the threads that load it.
#ifndef KVTIER_CUDA_KEY_ROW_H_
#define KVTIER_CUDA_KEY_ROW_H_

#include <cstdint>

#include "cuda/attention.h"
#include "cuda/simt.h"

namespace kvtier {

struct KeyRow {
  const char* keys;
  const char* values;
  const char* key_scales;
  const char* value_scales;
  RowCode code;
};

// All keys of a head, with those of a tail.
KVTIER_DEVICE int64_t HeadKeys(const AttentionParams& p, int64_t head) {
  const int64_t tail = p.tail_row == nullptr ? 0 : *p.tail_row + p.query_rows;
  return p.head_rows[head] + tail;
}

// The item without keys that none of its rows sees: a plan for a range of lengths has some. What is
// left starts at a whole tile of the item, as results depend on where tiles start.
KVTIER_DEVICE AttentionItem SeenPart(const AttentionParams& p, AttentionItem item, int query_tile) {
  const int64_t keys = HeadKeys(p, item.head);
  const int64_t rows = p.query_rows * p.group;
  const int64_t behind = item.first_row + query_tile;
  const int64_t last = (behind < rows ? behind : rows) - 1;
  const int64_t end = KeysEnd(keys, p.query_rows, last / p.group);
  const int64_t begin = KeysBegin(KeysEnd(keys, p.query_rows, item.first_row / p.group), p.window);
  if (item.key_end > end) item.key_end = end;
  if (item.key_begin < begin) {
    item.key_begin += (begin - item.key_begin) / kKeyTileMax * kKeyTileMax;
  }
  return item;
}

// Row `key` of the head's tail.
KVTIER_DEVICE KeyRow FindTailKey(const AttentionParams& p, int64_t head, int64_t key) {
  const int64_t bytes =
      (head * p.tail_capacity + key) * RowCodeBytes(RowCode::kRaw, p.kv_type, p.head_dim);
  KeyRow found;
  found.keys = static_cast<const char*>(p.tail_keys) + bytes;
  found.values = static_cast<const char*>(p.tail_values) + bytes;
  found.key_scales = nullptr;
  found.value_scales = nullptr;
  found.code = RowCode::kRaw;
  return found;
}

// Row `key` of the head. The spans of a head are few: bands and a tail.
KVTIER_DEVICE KeyRow FindKey(const AttentionParams& p, int64_t head, int64_t key) {
  if (p.tail_row != nullptr && key >= p.head_rows[head]) {
    return FindTailKey(p, head, key - p.head_rows[head]);
  }
  int64_t i = p.span_begin[head];
  while (key >= p.spans[i].begin + p.spans[i].rows) ++i;
  const KeySpan& span = p.spans[i];
  const int64_t row = key - span.begin;
  const int64_t bytes = row * RowCodeBytes(span.code, p.kv_type, p.head_dim);
  const int64_t scales = row * RowScaleBytes(span.code);
  KeyRow found;
  found.keys = static_cast<const char*>(span.keys) + bytes;
  found.values = static_cast<const char*>(span.values) + bytes;
  found.key_scales = static_cast<const char*>(span.key_scales) + scales;
  found.value_scales = static_cast<const char*>(span.value_scales) + scales;
  found.code = span.code;
  return found;
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_KEY_ROW_H_
