// The bytes of one (band, layer): for every KV head, in head order, its rows. Head-major, so that
// a tensor-parallel rank reads one contiguous range; rows ascend by position inside a head.
//
// Head block (codec kRaw), every array starting at a multiple of kSegmentAlignment, zero padded:
//   positions   u32  [rows]            cache positions, ascending
//   log_scores  f16  [rows]            natural log of the KVzip score; +inf for protected rows
//   keys        dtype[rows, head_dim]  after RoPE (and QK norm where the model has one)
//   values      dtype[rows, head_dim]
// All little endian. docs/object_format.md has sizes and a worked example.
#ifndef KVTIER_KVCACHE_SEGMENT_H_
#define KVTIER_KVCACHE_SEGMENT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/aligned_bytes.h"
#include "base/half.h"
#include "kvcache/geometry.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"

namespace kvtier {

inline constexpr uint64_t kSegmentAlignment = 64;

// Offsets of one head block's arrays from the block's start, in bytes.
struct HeadBlockLayout {
  uint64_t positions = 0;
  uint64_t log_scores = 0;
  uint64_t keys = 0;
  uint64_t values = 0;
  uint64_t bytes = 0;  // Whole block, a multiple of kSegmentAlignment; 0 for no rows.
};
HeadBlockLayout LayOutHeadBlock(const Geometry& geometry, uint32_t rows);

// Writable and readable views of one head block.
struct HeadRowsMut {
  std::span<uint32_t> positions;
  std::span<float16> log_scores;
  std::byte* keys = nullptr;    // [rows, head_dim]
  std::byte* values = nullptr;  // [rows, head_dim]
};
struct HeadRows {
  uint32_t rows = 0;
  std::span<const uint32_t> positions;
  std::span<const float16> log_scores;
  const std::byte* keys = nullptr;    // [rows, head_dim]
  const std::byte* values = nullptr;  // [rows, head_dim]
};

// Builds one segment in place: sized from the row counts, filled head by head, then sealed.
class SegmentBuilder {
 public:
  // `rows` is [kv_heads]. INVALID_ARGUMENT when they do not fit the geometry or
  // limits::kSegmentBytesMax; RESOURCE_EXHAUSTED when the memory cannot be had.
  static absl::StatusOr<SegmentBuilder> Create(const Geometry& geometry,
                                               std::span<const uint32_t> rows);
  // Where the caller writes head `head`; zero until then. Different heads may be filled by
  // different threads. REQUIRES: head < kv_heads.
  HeadRowsMut head(uint32_t head);
  struct Sealed {
    SegmentEntry entry;
    AlignedBytes bytes;
  };
  // Computes the CRCs. Consumes the builder.
  Sealed Seal() &&;

 private:
  SegmentBuilder(Geometry geometry, std::vector<uint32_t> rows, AlignedBytes bytes);
  Geometry geometry_;
  std::vector<uint32_t> rows_;
  std::vector<uint64_t> offsets_;
  AlignedBytes bytes_;
};

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
// log scores finite, +inf for protected rows. DATA_LOSS naming what is wrong; OUT_OF_RANGE when the
// manifest has no such segment.
// REQUIRES: manifest.Validate() is ok.
absl::Status VerifySegmentContent(const Manifest& manifest, BandIndex band, LayerIndex layer,
                                  std::span<const std::byte> segment);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SEGMENT_H_
