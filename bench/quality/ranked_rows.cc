#include "bench/quality/ranked_rows.h"

#include <numeric>
#include <span>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvcache/geometry.h"

namespace kvtier {
namespace {

// Positions of a head by band, ascending inside each; rows[b] counts those of bands 0..b.
void SortByBand(std::span<const uint8_t> bands, uint64_t protected_rows, uint32_t band_count,
                std::vector<uint32_t>& positions, std::vector<uint32_t>& rows) {
  rows.assign(band_count, 0);
  for (uint8_t band : bands) ++rows[band];
  std::vector<uint32_t> next(band_count, static_cast<uint32_t>(protected_rows));
  for (uint32_t b = 1; b < band_count; ++b) next[b] = next[b - 1] + rows[b - 1];
  positions.resize(protected_rows + bands.size());
  std::iota(positions.begin(), positions.begin() + static_cast<ptrdiff_t>(protected_rows), 0u);
  for (size_t t = 0; t < bands.size(); ++t) {
    positions[next[bands[t]]++] = static_cast<uint32_t>(protected_rows + t);
  }
  rows[0] += static_cast<uint32_t>(protected_rows);
  std::partial_sum(rows.begin(), rows.end(), rows.begin());
}

}  // namespace

absl::Status RankedRows::Fill(Backend& backend, const DenseCache& cache, uint64_t system_tokens,
                              const std::vector<uint8_t>& bands, uint32_t band_count) {
  const Geometry& geometry = cache.geometry();
  const auto length = static_cast<uint64_t>(cache.length());
  const uint64_t context_tokens = length - system_tokens;
  if (length < system_tokens || bands.size() != geometry.scored_pairs(context_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat("ranked rows: bands of ", bands.size(),
                                                   " pairs, a cache of ", length, " rows"));
  }
  for (uint8_t band : bands) {
    if (band >= band_count) {
      return absl::InvalidArgumentError(
          absl::StrCat("ranked rows: band ", band, " of ", band_count));
    }
  }
  heads_per_layer_ = geometry.kv_heads;
  row_bytes_ = geometry.head_dim * DTypeBytes(geometry.dtype);
  heads_.resize(uint64_t{geometry.layer_count()} * geometry.kv_heads);
  keys_.resize(heads_.size() * length * row_bytes_);
  values_.resize(keys_.size());
  uint64_t scored_begin = 0;
  for (size_t i = 0; i < heads_.size(); ++i) {
    Head& head = heads_[i];
    const auto layer = static_cast<int64_t>(i / geometry.kv_heads);
    const bool scored = geometry.layers[layer] == LayerKind::kGlobal;
    const auto of_head = scored ? std::span(bands).subspan(scored_begin, context_tokens)
                                : std::span<const uint8_t>();
    if (scored) scored_begin += context_tokens;
    SortByBand(of_head, scored ? system_tokens : length, band_count, head.positions, head.rows);
    head.offset = i * length * row_bytes_;
    KVTIER_RETURN_IF_ERROR(backend.GatherRows(
        cache.layer(layer), static_cast<int64_t>(i % geometry.kv_heads), head.positions,
        keys_.data() + head.offset, values_.data() + head.offset));
  }
  return absl::OkStatus();
}

LayerSpans RankedRows::At(uint32_t band) {
  spans_.resize(heads_.size());
  layers_.assign(heads_.size() / heads_per_layer_, {});
  for (size_t i = 0; i < heads_.size(); ++i) {
    const Head& head = heads_[i];
    RowSpan& span = spans_[i];
    span = RowSpan();
    span.keys = keys_.data() + head.offset;
    span.values = values_.data() + head.offset;
    span.rows = head.rows[band];
    span.positions = head.positions.data();
    layers_[i / heads_per_layer_].emplace_back(&span, span.rows > 0 ? 1 : 0);
  }
  return [this](int64_t layer) { return &layers_[layer]; };
}

}  // namespace kvtier
