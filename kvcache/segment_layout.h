// Where the arrays of one head's rows lie inside a segment, for every codec. Offsets follow from
// the row count, save that the position code of the lossy codecs takes what its positions need and
// therefore comes last. Plain functions: any thread may call.
//
// Head block of kRaw, every array starting at a multiple of kSegmentAlignment, zero padded:
//   positions   u32  [rows]            cache positions, ascending
//   log_scores  f16  [rows]            natural log of the KVzip score; +inf for protected rows
//   keys        dtype[rows, head_dim]  after RoPE (and QK norm where the model has one)
//   values      dtype[rows, head_dim]
// Head block of kInt8 and kInt4, likewise (D = head_dim; the codes: kvcache/row_codec.h):
//   keys          u8 [rows, D] or u8[rows, ceil(D / 2)]
//   values        the same
//   key_scales    f16[rows] or f16[rows, 2]
//   value_scales  the same
//   log_scores    f16[rows]
//   positions     kvcache/position_code.h
// All little endian. docs/object_format.md has sizes and worked examples.
#ifndef KVTIER_KVCACHE_SEGMENT_LAYOUT_H_
#define KVTIER_KVCACHE_SEGMENT_LAYOUT_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvcache/codec_id.h"
#include "kvcache/geometry.h"

namespace kvtier {

inline constexpr uint64_t kSegmentAlignment = 64;

constexpr uint64_t AlignUpSegment(uint64_t bytes) {
  return (bytes + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
}

// Bytes of one row inside the arrays keys (= values) and key_scales (= value_scales).
// REQUIRES: a known codec.
uint64_t EncodedRowBytes(const Geometry& geometry, CodecId codec);
uint64_t EncodedScaleBytes(CodecId codec);  // 0 for kRaw.
// True if positions are stored as u32; else as a position code.
constexpr bool StoresPlainPositions(CodecId codec) { return codec == CodecId::kRaw; }

// Offsets of one head block's arrays from the block's start, in bytes.
struct HeadBlockLayout {
  uint64_t positions = 0;
  uint64_t log_scores = 0;
  uint64_t keys = 0;
  uint64_t values = 0;
  uint64_t key_scales = 0;    // Unused by kRaw.
  uint64_t value_scales = 0;  // Unused by kRaw.
  uint64_t bytes = 0;         // Whole block, a multiple of kSegmentAlignment; 0 for no rows.
};

// Of kRaw.
HeadBlockLayout LayOutHeadBlock(const Geometry& geometry, uint32_t rows);
// Of any known codec. `position_bytes` is the length of the position code; kRaw ignores it.
HeadBlockLayout LayOutHeadBlock(const Geometry& geometry, CodecId codec, uint32_t rows,
                                uint64_t position_bytes);
// Of a block that a manifest describes. INVALID_ARGUMENT: unknown codec; `encoded_bytes` cannot be
// those of so many rows.
absl::StatusOr<HeadBlockLayout> LayOutStoredBlock(const Geometry& geometry, CodecId codec,
                                                  uint32_t rows, uint64_t encoded_bytes);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SEGMENT_LAYOUT_H_
