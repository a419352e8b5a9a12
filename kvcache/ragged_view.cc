#include "kvcache/ragged_view.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

absl::Status CheckShape(const Manifest* manifest, uint32_t band_count, HeadRange heads,
                        std::span<const SegmentRef> segments) {
  if (manifest == nullptr) return absl::InvalidArgumentError("ragged cache: no manifest");
  if (band_count == 0 || band_count > manifest->bands.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ragged cache: ", band_count, " bands of ", manifest->bands.size()));
  }
  if (heads.begin >= heads.end || heads.end > manifest->geometry.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("ragged cache: heads [", heads.begin, ", ",
                                                   heads.end, ") of ",
                                                   manifest->geometry.kv_heads));
  }
  const uint64_t expected = uint64_t{band_count} * manifest->geometry.layer_count();
  if (segments.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("ragged cache: ", segments.size(), " segments, expected ", expected));
  }
  for (const SegmentRef& segment : segments) {
    if (reinterpret_cast<uintptr_t>(segment.bytes().data()) % kSegmentAlignment != 0) {
      return absl::InvalidArgumentError("ragged cache: a segment is not aligned");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const RaggedCache>> RaggedCache::Create(
    std::shared_ptr<const Manifest> manifest, uint32_t band_count, HeadRange heads,
    std::vector<SegmentRef> segments) {
  KVTIER_RETURN_IF_ERROR(CheckShape(manifest.get(), band_count, heads, segments));
  const Geometry& geometry = manifest->geometry;
  std::shared_ptr<RaggedCache> cache(new RaggedCache());
  cache->band_count_ = band_count;
  cache->heads_ = heads;
  cache->span_begin_.reserve(uint64_t{geometry.layer_count()} * heads.size() + 1);
  cache->span_begin_.push_back(0);
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    for (uint32_t head = heads.begin; head < heads.end; ++head) {
      for (uint32_t band = 0; band < band_count; ++band) {
        const SegmentRef& segment = segments[band * geometry.layer_count() + layer];
        KVTIER_ASSIGN_OR_RETURN(
            const HeadRows rows,
            ReadHead(geometry, manifest->segment(BandIndex(band), LayerIndex(layer)), heads,
                     segment.bytes(), head));
        if (rows.rows == 0) continue;
        cache->spans_.push_back(
            {.keys = rows.keys,
             .values = rows.values,
             .rows = rows.rows,
             .positions = rows.positions.data(),
             .codec = manifest->segment(BandIndex(band), LayerIndex(layer)).codec,
             .key_scales = rows.key_scales,
             .value_scales = rows.value_scales});
      }
      cache->span_begin_.push_back(static_cast<uint32_t>(cache->spans_.size()));
    }
  }
  for (const SegmentRef& segment : segments) cache->bytes_ += segment.bytes().size();
  cache->manifest_ = std::move(manifest);
  cache->segments_ = std::move(segments);
  return cache;
}

std::span<const RowSpan> RaggedCache::spans(LayerIndex layer, uint32_t head) const {
  KVTIER_CHECK(layer.value() < geometry().layer_count() && head >= heads_.begin &&
               head < heads_.end);
  const uint64_t at = uint64_t{layer.value()} * heads_.size() + (head - heads_.begin);
  return std::span(spans_).subspan(span_begin_[at], span_begin_[at + 1] - span_begin_[at]);
}

absl::StatusOr<std::vector<uint32_t>> RaggedCache::Positions(LayerIndex layer,
                                                             uint32_t head) const {
  KVTIER_CHECK(layer.value() < geometry().layer_count() && head >= heads_.begin &&
               head < heads_.end);
  std::vector<uint32_t> all;
  for (uint32_t band = 0; band < band_count_; ++band) {
    const SegmentRef& segment = segments_[band * geometry().layer_count() + layer.value()];
    KVTIER_ASSIGN_OR_RETURN(const HeadRows rows,
                            ReadHead(geometry(), manifest_->segment(BandIndex(band), layer), heads_,
                                     segment.bytes(), head));
    KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> positions, ReadPositions(rows));
    all.insert(all.end(), positions.begin(), positions.end());
  }
  return all;
}

uint32_t RaggedCache::rows(LayerIndex layer, uint32_t head) const {
  uint32_t rows = 0;
  for (const RowSpan& span : spans(layer, head)) rows += span.rows;
  return rows;
}

}  // namespace kvtier
