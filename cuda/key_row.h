// Where the row of a key lies, found by the threads that load it.
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

// Row `key` of the head. The spans of a head are few: bands and a tail.
KVTIER_DEVICE KeyRow FindKey(const AttentionParams& p, int64_t head, int64_t key) {
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
