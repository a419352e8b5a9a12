// What a lossy codec does to one row (head_dim elements: the key or the value of one token in one
// head). A row is coded alone, so rows can be picked, moved to other bands and read one by one.
//
//   int8  x ~ scale * q            q = round(x / scale) in -127..127, one signed byte each;
//                                  scale = max |x| / 127, rounded up to an fp16
//   int4  x ~ minimum + scale * q  q = round((x - minimum) / scale) in 0..15, two to a byte, the
//                                  even index in the high half; minimum = min x rounded down to an
//                                  fp16, scale = (max x - minimum) / 15 rounded up to an fp16
//
// Scales are f16[1] (int8) and f16[2], scale then minimum (int4). They are rounded before the codes
// are computed, and away from the row, so that no element lies outside of what the codes reach and
// none is clamped. Codes round half away from zero. Decoding computes scale * q exactly (at most 19
// bits) and rounds once, in fp32, when the minimum is added: every implementation gives the same
// bits, with or without fused multiply-add.
//
// Error, against the fp32 value of the element: |x' - x| <= (1/2 + 2^-16) scale + 2^-22 max |x|.
// The second term is the rounding of fp32 itself. The scale follows from the row's range, see
// ErrorBound(). In int4 a row of equal elements that an
// fp16 can hold comes back exactly.
//
// These are the readable versions; compressor/cpu_kernels.h reads the same bytes faster and is
// tested against them. Immutable; any thread may call.
#ifndef KVTIER_KVCACHE_ROW_CODEC_H_
#define KVTIER_KVCACHE_ROW_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kvcache/codec_id.h"
#include "kvcache/geometry.h"

namespace kvtier {

class RowCodec {
 public:
  virtual ~RowCodec() = default;

  // Bytes of one row's codes and of its scales.
  virtual uint64_t code_bytes(uint32_t head_dim) const = 0;
  virtual uint64_t scale_bytes() const = 0;

  // Writes code_bytes(row.size()) and scale_bytes() bytes.
  // INVALID_ARGUMENT: an element that is not finite (its index is named), or a range that fp16
  // scales cannot hold: beyond 65504 * 127 for int8; below -65504 or 65504 * 15 wide for int4.
  virtual absl::Status EncodeRow(std::span<const float> row, std::byte* codes,
                                 std::byte* scales) const = 0;
  virtual void DecodeRow(const std::byte* codes, const std::byte* scales,
                         std::span<float> row) const = 0;

  // The largest error of any element of any row that this encodes with elements in
  // [minimum, maximum].
  virtual double ErrorBound(float minimum, float maximum) const = 0;

  // INVALID_ARGUMENT for bytes that EncodeRow does not write: scales that are not finite or below
  // zero, codes out of range, bits that belong to no element.
  virtual absl::Status CheckRow(const std::byte* codes, const std::byte* scales,
                                uint32_t head_dim) const = 0;
};

// Null for kRaw, whose rows are stored as they are, and for unknown ones.
const RowCodec* FindRowCodec(CodecId codec);

// Encodes `count` rows of `head_dim` elements of `dtype`, one behind the other. Errors as
// EncodeRow, with the index of the row.
absl::Status EncodeRows(const RowCodec& codec, DType dtype, const std::byte* rows, uint32_t count,
                        uint32_t head_dim, std::byte* codes, std::byte* scales);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_ROW_CODEC_H_
