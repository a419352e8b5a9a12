// The bytes of one (band, layer): for every KV head, in head order, its rows. Head-major, so that
// a tensor-parallel rank reads one contiguous range; rows ascend by position inside a head.
// Where its arrays lie: kvcache/segment_layout.h.
#ifndef KVTIER_KVCACHE_SEGMENT_H_
#define KVTIER_KVCACHE_SEGMENT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/aligned_bytes.h"
#include "base/half.h"
#include "kvcache/codec_id.h"
#include "kvcache/geometry.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "kvcache/segment_layout.h"

namespace kvtier {

// Writable and readable views of one head block. Keys, values and their scales are as encoded
// (kvcache/row_codec.h): EncodedRowBytes() and EncodedScaleBytes() of them to a row; for kRaw
// that is [rows, head_dim] of the dtype and no scales.
struct HeadRowsMut {
  std::span<uint32_t> positions;  // Strictly ascending once written, whatever the codec.
  std::span<float16> log_scores;
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
  std::byte* key_scales = nullptr;    // Null for kRaw.
  std::byte* value_scales = nullptr;  // Null for kRaw.
};
struct HeadRows {
  uint32_t rows = 0;
  // Where the codec stores plain positions; else empty, and position_code holds them:
  // ReadPositions() reads either.
  std::span<const uint32_t> positions;
  std::span<const std::byte> position_code;
  std::span<const float16> log_scores;
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  const std::byte* key_scales = nullptr;    // Null for kRaw.
  const std::byte* value_scales = nullptr;  // Null for kRaw.
};

// The positions of `head`, copied. DATA_LOSS: a position code that is none.
absl::StatusOr<std::vector<uint32_t>> ReadPositions(const HeadRows& head);

// Builds one segment in place: sized from the row counts, filled head by head, then sealed.
class SegmentBuilder {
 public:
  // `rows` is [kv_heads]. INVALID_ARGUMENT when they do not fit the geometry or
  // limits::kSegmentBytesMax (with position codes of the longest kind); RESOURCE_EXHAUSTED when the
  // memory cannot be had, that of positions to be encoded included.
  // REQUIRES: a known codec.
  static absl::StatusOr<SegmentBuilder> Create(const Geometry& geometry, CodecId codec,
                                               std::span<const uint32_t> rows);
  static absl::StatusOr<SegmentBuilder> Create(const Geometry& geometry,
                                               std::span<const uint32_t> rows) {
    return Create(geometry, CodecId::kRaw, rows);
  }
  // Where the caller writes head `head`; zero until then. Different heads may be filled by
  // different threads. REQUIRES: head < kv_heads.
  HeadRowsMut head(uint32_t head);
  // All heads' memory, in which head() points except to positions that Seal() encodes: for a copy
  // of the whole segment from elsewhere, which has zeros wherever no array lies.
  std::span<std::byte> bytes() { return bytes_.span(); }
  struct Sealed {
    SegmentEntry entry;
    AlignedBytes bytes;
  };
  // Encodes positions where the codec does, computes the CRCs. Consumes the builder.
  // REQUIRES: positions ascend in every head that has rows, if the codec encodes them.
  Sealed Seal() &&;

 private:
  SegmentBuilder(Geometry geometry, CodecId codec, std::vector<uint32_t> rows, AlignedBytes bytes,
                 AlignedBytes positions);
  // Of `head`, while the codec encodes them.
  std::span<uint32_t> positions(uint32_t head);
  // The block as it is filled, with room for the longest position code.
  HeadBlockLayout LayOut(uint32_t head) const;
  // Writes the position code of `head` into its block; returns the block's final size.
  uint64_t FinishBlock(uint32_t head, std::byte* block);

  Geometry geometry_;
  CodecId codec_;
  std::vector<uint32_t> rows_;
  std::vector<uint64_t> offsets_;
  std::vector<uint64_t> first_rows_;  // [kv_heads] rows of the heads before.
  AlignedBytes positions_;            // u32 of all rows, head by head, if the codec encodes them.
  AlignedBytes bytes_;
};

// Writes `rows` keys and values, [rows, head_dim] of the geometry's dtype each, into `out` as
// `codec` stores them (kRaw: as they are). INVALID_ARGUMENT: a row that the codec cannot hold,
// named. REQUIRES: `out` is of a builder of this geometry and codec and has `rows` rows.
absl::Status EncodeHeadRows(const Geometry& geometry, CodecId codec, uint32_t rows,
                            const std::byte* keys, const std::byte* values, const HeadRowsMut& out);

// Rows of head `head` inside `segment`, the bytes of heads `range` (the whole segment, or what a
// head-range fetch returned), which start at a multiple of 4. Checks sizes only; call VerifySegment
// for content.
//   INVALID_ARGUMENT  sizes do not fit the entry, or the bytes are not aligned
//   OUT_OF_RANGE      `range` is not of the entry, or `head` not in `range`
// REQUIRES: geometry.Validate() is ok.
absl::StatusOr<HeadRows> ReadHead(const Geometry& geometry, const SegmentEntry& entry,
                                  HeadRange range, std::span<const std::byte> segment,
                                  uint32_t head);

// DATA_LOSS naming the head whose CRC32C differs, or that the size is wrong. Checks every head of
// `range`; `segment` holds just their bytes. OUT_OF_RANGE when `range` is not of the entry.
absl::Status VerifySegment(const SegmentEntry& entry, HeadRange range,
                           std::span<const std::byte> segment);

// Deeper, for `verify` and tests, of a whole segment: CRCs, zero padding, positions ascending and
// inside the object, protected ones all there and in band 0 only, a sliding layer's the last ones;
// log scores finite, +inf for protected rows; codes and scales that the codec writes. DATA_LOSS
// naming what is wrong; OUT_OF_RANGE when the manifest has no such segment.
// REQUIRES: manifest.Validate() is ok.
absl::Status VerifySegmentContent(const Manifest& manifest, BandIndex band, LayerIndex layer,
                                  std::span<const std::byte> segment);
// The same for bytes whose CRCs have been checked already: what a checksum cannot tell, because
// whoever computed it may have been wrong about the content.
absl::Status CheckSegmentContent(const Manifest& manifest, BandIndex band, LayerIndex layer,
                                 std::span<const std::byte> segment);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SEGMENT_H_
