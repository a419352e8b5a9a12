#include "kvcache/segment_layout.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/log.h"
#include "kvcache/position_code.h"
#include "kvcache/row_codec.h"

namespace kvtier {

static_assert(kPositionCodePaddingMax == kSegmentAlignment - 1);

uint64_t EncodedRowBytes(const Geometry& geometry, CodecId codec) {
  KVTIER_CHECK(IsKnownCodec(codec)) << "codec " << static_cast<int>(codec);
  const RowCodec* row_codec = FindRowCodec(codec);
  return row_codec == nullptr ? geometry.row_bytes() : row_codec->code_bytes(geometry.head_dim);
}

uint64_t EncodedScaleBytes(CodecId codec) {
  KVTIER_CHECK(IsKnownCodec(codec)) << "codec " << static_cast<int>(codec);
  const RowCodec* row_codec = FindRowCodec(codec);
  return row_codec == nullptr ? 0 : row_codec->scale_bytes();
}

HeadBlockLayout LayOutHeadBlock(const Geometry& geometry, uint32_t rows) {
  const uint64_t row_array = AlignUpSegment(rows * geometry.row_bytes());
  HeadBlockLayout at;
  at.log_scores = AlignUpSegment(rows * sizeof(uint32_t));
  at.keys = at.log_scores + AlignUpSegment(rows * sizeof(float16));
  at.values = at.keys + row_array;
  at.bytes = at.values + row_array;
  return at;
}

HeadBlockLayout LayOutHeadBlock(const Geometry& geometry, CodecId codec, uint32_t rows,
                                uint64_t position_bytes) {
  if (codec == CodecId::kRaw) return LayOutHeadBlock(geometry, rows);
  if (rows == 0) return HeadBlockLayout();
  const uint64_t row_array = AlignUpSegment(rows * EncodedRowBytes(geometry, codec));
  const uint64_t scale_array = AlignUpSegment(rows * EncodedScaleBytes(codec));
  HeadBlockLayout at;
  at.keys = 0;
  at.values = row_array;
  at.key_scales = at.values + row_array;
  at.value_scales = at.key_scales + scale_array;
  at.log_scores = at.value_scales + scale_array;
  at.positions = at.log_scores + AlignUpSegment(rows * sizeof(float16));
  at.bytes = at.positions + AlignUpSegment(position_bytes);
  return at;
}

absl::StatusOr<HeadBlockLayout> LayOutStoredBlock(const Geometry& geometry, CodecId codec,
                                                  uint32_t rows, uint64_t encoded_bytes) {
  if (!IsKnownCodec(codec)) {
    return absl::InvalidArgumentError(absl::StrCat("unknown codec ", static_cast<int>(codec)));
  }
  // No overflow: each term is what a 32-bit row count takes.
  const HeadBlockLayout least =
      LayOutHeadBlock(geometry, codec, rows, rows * kPositionCodeBytesMin);
  const HeadBlockLayout most = LayOutHeadBlock(geometry, codec, rows, rows * kPositionCodeBytesMax);
  if (encoded_bytes < least.bytes || encoded_bytes > most.bytes ||
      encoded_bytes % kSegmentAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoded_bytes is ", encoded_bytes, ", but ", rows, " rows take ", least.bytes,
                     most.bytes == least.bytes ? std::string() : absl::StrCat(" to ", most.bytes)));
  }
  HeadBlockLayout at = least;
  at.bytes = encoded_bytes;
  return at;
}

}  // namespace kvtier
