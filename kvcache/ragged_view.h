// A cache assembled from bands without moving a byte: for each (layer, head) the list of row spans
// that attention runs over. Keys are stored after RoPE, so the order of spans does not matter.
#ifndef KVTIER_KVCACHE_RAGGED_VIEW_H_
#define KVTIER_KVCACHE_RAGGED_VIEW_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcache/manifest.h"
#include "kvcache/segment.h"
#include "kvcache/segment_ref.h"

namespace kvtier {

// Some rows of one head, contiguous in memory, as their codec stores them (kvcache/row_codec.h);
// for kRaw [rows, head_dim] elements of geometry.dtype.
struct RowSpan {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  uint32_t rows = 0;
  // [rows]. Null where the codec stores a position code: attention never needs them, and
  // RaggedCache::Positions() decodes them for those who do.
  const uint32_t* positions = nullptr;
  CodecId codec = CodecId::kRaw;
  const std::byte* key_scales = nullptr;    // Null for kRaw.
  const std::byte* value_scales = nullptr;  // Null for kRaw.
};

// Bands 0..band_count-1 of one upload, all heads or a range of them. Immutable after Create, so any
// number of threads may read it; keeps the segments pinned while it lives.
class RaggedCache {
 public:
  // `segments` is [band_count][layers], band-major, each holding the bytes of `heads` only.
  // INVALID_ARGUMENT when the count or any size does not fit the manifest. Does not verify CRCs:
  // whoever received the bytes has done so. At least one band and one head.
  // REQUIRES: manifest->Validate() is ok.
  static absl::StatusOr<std::shared_ptr<const RaggedCache>> Create(
      std::shared_ptr<const Manifest> manifest, uint32_t band_count, HeadRange heads,
      std::vector<SegmentRef> segments);

  const Manifest& manifest() const { return *manifest_; }
  const std::shared_ptr<const Manifest>& shared_manifest() const { return manifest_; }
  const Geometry& geometry() const { return manifest_->geometry; }
  uint32_t band_count() const { return band_count_; }
  Ratio ratio() const { return manifest_->bands[band_count_ - 1].edge; }
  HeadRange heads() const { return heads_; }
  // Encoded bytes that this cache pins.
  uint64_t bytes() const { return bytes_; }
  // Those of one segment. REQUIRES: a band below band_count(), a layer of the geometry.
  const SegmentRef& segment(BandIndex band, LayerIndex layer) const {
    return segments_[size_t{band.value()} * geometry().layer_count() + layer.value()];
  }
  // The non-empty spans of one head, band by band. `head` counts from 0 in the model.
  // REQUIRES: a layer of the geometry, a head inside heads().
  std::span<const RowSpan> spans(LayerIndex layer, uint32_t head) const;
  uint32_t rows(LayerIndex layer, uint32_t head) const;
  // Positions of those rows, span by span, whatever the codec. DATA_LOSS: a position code that is
  // none. REQUIRES: as spans().
  absl::StatusOr<std::vector<uint32_t>> Positions(LayerIndex layer, uint32_t head) const;

 private:
  RaggedCache() = default;
  std::shared_ptr<const Manifest> manifest_;
  uint32_t band_count_ = 0;
  HeadRange heads_;
  uint64_t bytes_ = 0;
  std::vector<SegmentRef> segments_;
  std::vector<RowSpan> spans_;
  std::vector<uint32_t> span_begin_;  // [layers * heads + 1] into spans_
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_RAGGED_VIEW_H_
