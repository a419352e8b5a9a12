// One element of a coded row (kvcache/row_codec.h), decoded where it is used. The same bits as
// RowCodec::DecodeRow: the product is exact, the sum rounds once.
#ifndef KVTIER_CUDA_MATH_ROW_DECODE_H_
#define KVTIER_CUDA_MATH_ROW_DECODE_H_

#include <cstdint>

#include "cuda/math/element.h"

namespace kvtier {

// The values of CodecId (kvcache/codec_id.h).
enum class RowCode : uint8_t { kRaw = 1, kInt8 = 2, kInt4 = 3 };

// Of one row's codes.
KVTIER_HOST_DEVICE inline int64_t RowCodeBytes(RowCode code, Element type, int64_t head_dim) {
  if (code == RowCode::kInt8) return head_dim;
  if (code == RowCode::kInt4) return (head_dim + 1) / 2;
  return head_dim * ElementBytes(type);
}

// Of one row's scales.
KVTIER_HOST_DEVICE inline int64_t RowScaleBytes(RowCode code) {
  return code == RowCode::kRaw ? 0 : code == RowCode::kInt8 ? 2 : 4;
}

// Element d of the row at `codes`, whose scales lie at `scales` (2-byte aligned; unread for kRaw).
KVTIER_HOST_DEVICE inline float DecodeElement(const void* codes, const void* scales, RowCode code,
                                              Element type, int64_t d) {
  if (code == RowCode::kRaw) return LoadElement(codes, d, type);
  const auto* scale = static_cast<const uint16_t*>(scales);
  const float step = half_internal::HalfBitsToFloat(scale[0]);
  if (code == RowCode::kInt8) {
    return step * static_cast<float>(static_cast<const int8_t*>(codes)[d]);
  }
  const uint32_t pair = static_cast<const uint8_t*>(codes)[d / 2];
  const uint32_t level = d % 2 == 0 ? pair >> 4 : pair & 15u;
  return half_internal::HalfBitsToFloat(scale[1]) + step * static_cast<float>(level);
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_ROW_DECODE_H_
