#include "compressor/rectangle_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/status_macros.h"
#include "compressor/safetensors_writer.h"
#include "kvcache/row_codec.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

// One stored row and how to read it.
struct Row {
  uint32_t position;
  const RowCodec* codec;  // Null: elements of the geometry's dtype.
  const std::byte* key;
  const std::byte* key_scales;
  const std::byte* value;
  const std::byte* value_scales;
};

// The rows of one head over all bands, by position.
absl::StatusOr<std::vector<Row>> RowsOf(const CompressedObject& object, LayerIndex layer,
                                        uint32_t head) {
  const Manifest& m = *object.manifest;
  std::vector<Row> rows;
  for (uint32_t band = 0; band < m.bands.size(); ++band) {
    const SegmentEntry& entry = m.segment(BandIndex(band), layer);
    KVTIER_ASSIGN_OR_RETURN(const HeadRows stored,
                            ReadHead(m.geometry, entry, {0, m.geometry.kv_heads},
                                     object.segment(BandIndex(band), layer).bytes(), head));
    KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> positions, ReadPositions(stored));
    const uint64_t bytes = EncodedRowBytes(m.geometry, entry.codec);
    const uint64_t scales = EncodedScaleBytes(entry.codec);
    for (uint64_t row = 0; row < stored.rows; ++row) {
      rows.push_back({positions[row], FindRowCodec(entry.codec), stored.keys + row * bytes,
                      stored.key_scales + row * scales, stored.values + row * bytes,
                      stored.value_scales + row * scales});
    }
  }
  std::ranges::sort(rows, {}, &Row::position);
  return rows;
}

// The keys or values of one layer, [kv_heads, rows, head_dim].
class Elements {
 public:
  static absl::StatusOr<Elements> Create(const Geometry& geometry, bool decoded, uint64_t rows) {
    Elements elements;
    elements.row_bytes_ = decoded ? geometry.head_dim * sizeof(float) : geometry.row_bytes();
    elements.head_dim_ = geometry.head_dim;
    KVTIER_ASSIGN_OR_RETURN(
        elements.bytes_, AlignedBytes::TryAllocate(geometry.kv_heads * rows * elements.row_bytes_));
    return elements;
  }
  void Set(uint64_t at, const RowCodec* codec, const std::byte* row, const std::byte* scales) {
    std::byte* const to = bytes_.data() + at * row_bytes_;
    if (codec == nullptr) {
      std::memcpy(to, row, row_bytes_);
    } else {
      codec->DecodeRow(row, scales, {reinterpret_cast<float*>(to), head_dim_});
    }
  }
  std::span<const std::byte> bytes() const { return bytes_.span(); }

 private:
  uint64_t row_bytes_ = 0;
  size_t head_dim_ = 0;
  AlignedBytes bytes_;
};

class LayerTensors {
 public:
  static absl::StatusOr<LayerTensors> Create(const CompressedObject& object, LayerIndex layer) {
    const Geometry& geometry = object.manifest->geometry;
    LayerTensors tensors;
    tensors.decoded_ = object.manifest->segment(BandIndex(0), layer).codec != CodecId::kRaw;
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      KVTIER_ASSIGN_OR_RETURN(const std::vector<Row> rows, RowsOf(object, layer, head));
      if (head == 0) {
        tensors.rows_ = rows.size();
        const uint64_t all = geometry.kv_heads * rows.size();
        KVTIER_ASSIGN_OR_RETURN(tensors.positions_,
                                AlignedBytes::TryAllocate(sizeof(uint32_t) * all));
        KVTIER_ASSIGN_OR_RETURN(tensors.keys_,
                                Elements::Create(geometry, tensors.decoded_, tensors.rows_));
        KVTIER_ASSIGN_OR_RETURN(tensors.values_,
                                Elements::Create(geometry, tensors.decoded_, tensors.rows_));
      }
      if (rows.size() != tensors.rows_) {
        return absl::InvalidArgumentError(
            absl::StrCat("no rectangle: layer ", layer.value(), " has ", tensors.rows_,
                         " rows in head 0 and ", rows.size(), " in head ", head));
      }
      for (uint64_t i = 0; i < rows.size(); ++i) {
        const Row& row = rows[i];
        const uint64_t at = head * tensors.rows_ + i;
        std::memcpy(tensors.positions_.data() + sizeof(uint32_t) * at, &row.position,
                    sizeof(uint32_t));
        tensors.keys_.Set(at, row.codec, row.key, row.key_scales);
        tensors.values_.Set(at, row.codec, row.value, row.value_scales);
      }
    }
    return tensors;
  }

  void AddTo(std::map<std::string, SafetensorsEntry>& entries, const Geometry& geometry,
             uint32_t layer) const {
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    const auto heads = static_cast<int64_t>(geometry.kv_heads);
    const auto rows = static_cast<int64_t>(rows_);
    const auto head_dim = static_cast<int64_t>(geometry.head_dim);
    const std::string dtype = decoded_ ? "F32" : absl::AsciiStrToUpper(DTypeName(geometry.dtype));
    entries[prefix + "positions"] = {"I32", {heads, rows}, positions_.span()};
    entries[prefix + "keys"] = {dtype, {heads, rows, head_dim}, keys_.bytes()};
    entries[prefix + "values"] = {dtype, {heads, rows, head_dim}, values_.bytes()};
  }

 private:
  uint64_t rows_ = 0;
  bool decoded_ = false;
  AlignedBytes positions_;
  Elements keys_, values_;
};

}  // namespace

absl::Status WriteRectangleFile(const CompressedObject& object, const std::string& path) {
  const Manifest& m = *object.manifest;
  std::vector<LayerTensors> layers;
  for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
    KVTIER_ASSIGN_OR_RETURN(LayerTensors tensors, LayerTensors::Create(object, LayerIndex(layer)));
    layers.push_back(std::move(tensors));
  }
  std::map<std::string, SafetensorsEntry> entries;
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    layers[layer].AddTo(entries, m.geometry, layer);
  }
  return WriteSafetensors(path, entries,
                          {{"key", m.key.ToHex()},
                           {"model", m.model_name},
                           {"model_digest", m.model_digest.ToHex()},
                           {"recipe", m.recipe},
                           {"ratio", m.bands.back().edge.ToString()},
                           {"logical_length", absl::StrCat(m.logical_length())},
                           {"system_tokens", absl::StrCat(m.system_tokens)}});
}

}  // namespace kvtier
