// Every row of a dense cache in the form that attention takes: one span per KV head. What the
// repeat pass and the baselines look at.
#ifndef KVTIER_COMPRESSOR_DENSE_SPANS_H_
#define KVTIER_COMPRESSOR_DENSE_SPANS_H_

#include <vector>

#include "compressor/backend.h"
#include "compressor/dense_cache.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// Points into the cache, which must outlive it and neither move nor grow. Immutable, so any thread
// may read. Neither copied nor moved, because HeadSpans points into it.
class DenseSpans {
 public:
  explicit DenseSpans(const DenseCache& cache);
  DenseSpans(const DenseSpans&) = delete;
  DenseSpans& operator=(const DenseSpans&) = delete;

  const HeadSpans* layer(int64_t index) const { return &heads_[index]; }

 private:
  std::vector<RowSpan> spans_;    // [layers, kv_heads]
  std::vector<HeadSpans> heads_;  // [layers], into spans_
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DENSE_SPANS_H_
