// The caches that a method keeps at several ratios, without packing an object for each: the rows of
// a dense cache copied head by head in the order of a band assignment, so that the cache at band b
// is the first part of every head. Equal to attending to bands 0..b of a packed object, whose rows
// are the same in another order.
#ifndef KVTIER_BENCH_QUALITY_RANKED_ROWS_H_
#define KVTIER_BENCH_QUALITY_RANKED_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "compressor/backend.h"
#include "compressor/dense_cache.h"
#include "compressor/ranking.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// What a pass sees before its own rows, layer by layer, as ForwardPlan::spans.
using LayerSpans = std::function<const HeadSpans*(int64_t layer)>;

// Not thread-safe. Keeps its memory from one Fill to the next.
class RankedRows {
 public:
  // Copies every row of `cache`: its first `system_tokens` rows and those of layers that are not
  // scored first, the others by band. `bands` is [scored layers, kv_heads, context tokens].
  // INVALID_ARGUMENT: an assignment that does not fit the cache.
  absl::Status Fill(Backend& backend, const DenseCache& cache, uint64_t system_tokens,
                    const std::vector<uint8_t>& bands, uint32_t band_count);

  // Bands 0..band. Valid until the next Fill or At.
  LayerSpans At(uint32_t band);

 private:
  struct Head {
    std::vector<uint32_t> positions;  // In copied order.
    std::vector<uint32_t> rows;       // [bands] rows of bands 0..b.
    size_t offset = 0;                // Of its keys and values.
  };

  int64_t heads_per_layer_ = 0;
  size_t row_bytes_ = 0;
  std::vector<Head> heads_;  // [layers, kv_heads]
  std::vector<std::byte> keys_;
  std::vector<std::byte> values_;
  std::vector<RowSpan> spans_;     // [layers, kv_heads]
  std::vector<HeadSpans> layers_;  // [layers], into spans_
};

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_RANKED_ROWS_H_
