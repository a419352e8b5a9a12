#include "kvcache/row_codec.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "kvcache/half_rounding.h"

namespace kvtier {
namespace {

// Half a step, what dividing in fp32 may add to it, and the rounding of the decoded sum.
double ErrorOfScale(double scale, double magnitude) {
  return scale * (0.5 + std::ldexp(1.0, -16)) + magnitude * std::ldexp(1.0, -22);
}

// What rounding up to an fp16 may add: one unit in the last place, or of the subnormals.
double RoundedUp(double value) { return value * (1 + std::ldexp(1.0, -10)) + std::ldexp(1.0, -24); }

struct Range {
  float minimum = 0;
  float maximum = 0;
};

absl::StatusOr<Range> RangeOf(std::span<const float> row) {
  Range range{row[0], row[0]};
  float sum = 0;  // NaN as soon as one element is not finite.
  for (const float x : row) {
    range.minimum = std::min(range.minimum, x);
    range.maximum = std::max(range.maximum, x);
    sum += x * 0.0f;
  }
  if (sum == 0) return range;
  for (size_t i = 0; i < row.size(); ++i) {
    if (!std::isfinite(row[i])) {
      return absl::InvalidArgumentError(absl::StrCat("element ", i, " is ", row[i]));
    }
  }
  return absl::InternalError("a row of finite elements is not finite");
}

float16 ScaleAt(const std::byte* scales, int index) {
  return float16::FromBits(LoadLittleEndian<uint16_t>(scales + 2 * index));
}
void StoreScale(float16 scale, std::byte* scales, int index) {
  StoreLittleEndian<uint16_t>(scale.bits, scales + 2 * index);
}

absl::Status CheckScale(float16 scale) {
  const float value = static_cast<float>(scale);
  if (std::isfinite(value) && !std::signbit(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("scale is ", value));
}

class Int8Codec final : public RowCodec {
 public:
  uint64_t code_bytes(uint32_t head_dim) const override { return head_dim; }
  uint64_t scale_bytes() const override { return sizeof(float16); }

  absl::Status EncodeRow(std::span<const float> row, std::byte* codes,
                         std::byte* scales) const override {
    KVTIER_ASSIGN_OR_RETURN(const Range range, RangeOf(row));
    const float magnitude = std::max({0.0f, -range.minimum, range.maximum});  // Never -0.
    const float16 scale = RoundUpToHalf(double{magnitude} / kLevels);
    const float step = static_cast<float>(scale);
    if (!std::isfinite(step)) {
      return absl::InvalidArgumentError(
          absl::StrCat("magnitude ", magnitude, ", int8 holds at most ", kLevels * kHalfMax));
    }
    StoreScale(scale, scales, 0);
    for (size_t i = 0; i < row.size(); ++i) {
      const float steps = step == 0 ? 0 : row[i] / step;
      codes[i] = static_cast<std::byte>(
          static_cast<int8_t>(static_cast<int>(steps + std::copysign(0.5f, steps))));
    }
    return absl::OkStatus();
  }

  void DecodeRow(const std::byte* codes, const std::byte* scales,
                 std::span<float> row) const override {
    const float scale = static_cast<float>(ScaleAt(scales, 0));
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = scale * static_cast<float>(static_cast<int8_t>(codes[i]));
    }
  }

  double ErrorBound(float minimum, float maximum) const override {
    const double magnitude = std::max(std::abs(double{minimum}), std::abs(double{maximum}));
    return ErrorOfScale(RoundedUp(magnitude / kLevels), magnitude);
  }

  absl::Status CheckRow(const std::byte* codes, const std::byte* scales,
                        uint32_t head_dim) const override {
    KVTIER_RETURN_IF_ERROR(CheckScale(ScaleAt(scales, 0)));
    for (uint32_t i = 0; i < head_dim; ++i) {
      if (static_cast<int8_t>(codes[i]) < -kLevels) {
        return absl::InvalidArgumentError(absl::StrCat("code of element ", i, " is -128"));
      }
    }
    return absl::OkStatus();
  }

 private:
  static constexpr int kLevels = 127;  // On either side of zero.
};

class Int4Codec final : public RowCodec {
 public:
  uint64_t code_bytes(uint32_t head_dim) const override { return (uint64_t{head_dim} + 1) / 2; }
  uint64_t scale_bytes() const override { return 2 * sizeof(float16); }

  absl::Status EncodeRow(std::span<const float> row, std::byte* codes,
                         std::byte* scales) const override {
    KVTIER_ASSIGN_OR_RETURN(const Range range, RangeOf(row));
    float16 minimum = RoundDownToHalf(range.minimum);
    if (static_cast<float>(minimum) == 0) minimum = float16::FromBits(0);  // Never -0.
    const float low = static_cast<float>(minimum);
    float16 scale = RoundUpToHalf(std::max(0.0, double{range.maximum} - low) / kLevels);
    // The quotient was rounded: once more against what must hold, which a double states exactly.
    if (low + double{kLevels} * static_cast<float>(scale) < range.maximum) {
      scale = NextHalfUp(scale);
    }
    const float step = static_cast<float>(scale);
    if (!std::isfinite(low) || !std::isfinite(step)) {
      return absl::InvalidArgumentError(
          absl::StrCat("elements in [", range.minimum, ", ", range.maximum,
                       "], int4 holds those from -65504 on, ", kLevels * kHalfMax, " wide"));
    }
    StoreScale(scale, scales, 0);
    StoreScale(minimum, scales, 1);
    const auto code_of = [&](float x) {
      if (step == 0) return 0;
      return std::min(kLevels, static_cast<int>((x - low) / step + 0.5f));
    };
    for (size_t i = 0; i < row.size(); i += 2) {
      const int high = code_of(row[i]);
      const int last = i + 1 < row.size() ? code_of(row[i + 1]) : 0;
      codes[i / 2] = static_cast<std::byte>(high << 4 | last);
    }
    return absl::OkStatus();
  }

  void DecodeRow(const std::byte* codes, const std::byte* scales,
                 std::span<float> row) const override {
    const float scale = static_cast<float>(ScaleAt(scales, 0));
    const float minimum = static_cast<float>(ScaleAt(scales, 1));
    for (size_t i = 0; i < row.size(); ++i) {
      const auto pair = std::to_integer<uint32_t>(codes[i / 2]);
      row[i] = minimum + scale * static_cast<float>(i % 2 == 0 ? pair >> 4 : pair & 15);
    }
  }

  double ErrorBound(float minimum, float maximum) const override {
    const double magnitude = std::max(std::abs(double{minimum}), std::abs(double{maximum}));
    const double lowered = RoundedUp(std::abs(double{minimum})) - std::abs(double{minimum});
    const double width = double{maximum} - minimum + lowered;
    return ErrorOfScale(RoundedUp(width / kLevels), magnitude);
  }

  absl::Status CheckRow(const std::byte* codes, const std::byte* scales,
                        uint32_t head_dim) const override {
    KVTIER_RETURN_IF_ERROR(CheckScale(ScaleAt(scales, 0)));
    const float minimum = static_cast<float>(ScaleAt(scales, 1));
    if (!std::isfinite(minimum)) {
      return absl::InvalidArgumentError(absl::StrCat("minimum is ", minimum));
    }
    if (head_dim % 2 == 1 && (codes[head_dim / 2] & std::byte{15}) != std::byte{0}) {
      return absl::InvalidArgumentError("bits behind the last element are not zero");
    }
    return absl::OkStatus();
  }

 private:
  static constexpr int kLevels = 15;  // Above the minimum.
};

void LoadRow(const std::byte* from, DType dtype, std::span<float> row) {
  for (size_t i = 0; i < row.size(); ++i) {
    switch (dtype) {
      case DType::kF32:
        row[i] = LoadLittleEndian<float>(from + 4 * i);
        break;
      case DType::kF16:
        row[i] = static_cast<float>(float16::FromBits(LoadLittleEndian<uint16_t>(from + 2 * i)));
        break;
      case DType::kBf16:
        row[i] = static_cast<float>(bfloat16::FromBits(LoadLittleEndian<uint16_t>(from + 2 * i)));
        break;
    }
  }
}

}  // namespace

const RowCodec* FindRowCodec(CodecId codec) {
  static const Int8Codec kInt8;
  static const Int4Codec kInt4;
  switch (codec) {
    case CodecId::kRaw:
      return nullptr;
    case CodecId::kInt8:
      return &kInt8;
    case CodecId::kInt4:
      return &kInt4;
  }
  return nullptr;  // A byte that a manifest brought.
}

absl::Status EncodeRows(const RowCodec& codec, DType dtype, const std::byte* rows, uint32_t count,
                        uint32_t head_dim, std::byte* codes, std::byte* scales) {
  std::vector<float> row(head_dim);
  const uint64_t row_bytes = uint64_t{head_dim} * DTypeBytes(dtype);
  for (uint32_t i = 0; i < count; ++i) {
    LoadRow(rows + i * row_bytes, dtype, row);
    const absl::Status status = codec.EncodeRow(row, codes + i * codec.code_bytes(head_dim),
                                                scales + i * codec.scale_bytes());
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat("row ", i, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvtier
