#include "kvcache/segment.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvcache/position_code.h"
#include "kvcache/row_codec.h"

namespace kvtier {
namespace {

static_assert(AlignedBytes::kAlignmentBytes % kSegmentAlignment == 0);

absl::Status CheckHeadRange(const SegmentEntry& entry, HeadRange range) {
  if (range.begin > range.end || range.end > entry.heads.size()) {
    return absl::OutOfRangeError(
        absl::StrCat("heads [", range.begin, ", ", range.end, ") of ", entry.heads.size()));
  }
  return absl::OkStatus();
}

bool AllZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// The bytes between the arrays of a head block. Those behind a position code are ReadPositions' to
// check.
bool PaddingIsZero(const Geometry& geometry, CodecId codec, uint32_t rows,
                   const HeadBlockLayout& at, std::span<const std::byte> block) {
  const auto gap_behind = [&](uint64_t begin, uint64_t bytes) {
    return AllZero(block.subspan(begin + bytes, AlignUpSegment(bytes) - bytes));
  };
  const uint64_t row_array = rows * EncodedRowBytes(geometry, codec);
  const uint64_t scale_array = rows * EncodedScaleBytes(codec);
  return gap_behind(at.log_scores, rows * sizeof(float16)) && gap_behind(at.keys, row_array) &&
         gap_behind(at.values, row_array) && gap_behind(at.key_scales, scale_array) &&
         gap_behind(at.value_scales, scale_array) &&
         (!StoresPlainPositions(codec) || gap_behind(at.positions, rows * sizeof(uint32_t)));
}

// Codes and scales of every row.
absl::Status CheckCodes(const Geometry& geometry, CodecId codec, const HeadRows& head) {
  const RowCodec* row_codec = FindRowCodec(codec);
  if (row_codec == nullptr) return absl::OkStatus();
  const uint64_t row_bytes = EncodedRowBytes(geometry, codec);
  const uint64_t scale_bytes = EncodedScaleBytes(codec);
  for (uint32_t row = 0; row < head.rows; ++row) {
    for (const bool of_key : {true, false}) {
      const absl::Status status = row_codec->CheckRow(
          (of_key ? head.keys : head.values) + row * row_bytes,
          (of_key ? head.key_scales : head.value_scales) + row * scale_bytes, geometry.head_dim);
      if (!status.ok()) {
        return absl::DataLossError(
            absl::StrCat("row ", row, of_key ? " key: " : " value: ", status.message()));
      }
    }
  }
  return absl::OkStatus();
}

// Rows of a scored layer: the protected ones first and only in band 0, each score as its row wants.
absl::Status CheckScoredRows(const Manifest& m, BandIndex band, const HeadRows& rows,
                             std::span<const uint32_t> positions) {
  const uint64_t protected_tokens = m.protected_tokens();
  for (uint32_t row = 0; row < rows.rows; ++row) {
    const uint32_t position = positions[row];
    const float score = static_cast<float>(rows.log_scores[row]);
    const bool is_protected = position < protected_tokens;
    if (is_protected && band.value() != 0) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": protected position ", position, " above band 0"));
    }
    if (band.value() == 0 && row < protected_tokens && position != row) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": protected position ", row, " is missing"));
    }
    const bool is_infinite = std::isinf(score) && score > 0;
    if (is_protected ? !is_infinite : !std::isfinite(score)) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": log score ", score, " at position ", position));
    }
  }
  return absl::OkStatus();
}

// Rows of a sliding layer: the last positions, all protected.
absl::Status CheckSlidingRows(const Manifest& m, const HeadRows& rows,
                              std::span<const uint32_t> positions) {
  for (uint32_t row = 0; row < rows.rows; ++row) {
    if (positions[row] != m.logical_length() - rows.rows + row) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": position ", positions[row], " is not of the window"));
    }
    const float score = static_cast<float>(rows.log_scores[row]);
    if (!std::isinf(score) || score < 0) {
      return absl::DataLossError(absl::StrCat("row ", row, ": log score ", score, " of a window"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPositions(const Manifest& m, std::span<const uint32_t> positions) {
  for (uint32_t row = 0; row < positions.size(); ++row) {
    if (positions[row] >= m.logical_length()) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": position ", positions[row], " of ", m.logical_length()));
    }
    if (row > 0 && positions[row] <= positions[row - 1]) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": position ", positions[row], " after ", positions[row - 1]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHeadContent(const Manifest& m, BandIndex band, LayerIndex layer,
                              const HeadRows& rows, const HeadBlockLayout& at,
                              std::span<const std::byte> block) {
  const CodecId codec = m.segment(band, layer).codec;
  if (!PaddingIsZero(m.geometry, codec, rows.rows, at, block)) {
    return absl::DataLossError("padding is not zero");
  }
  KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> positions, ReadPositions(rows));
  KVTIER_RETURN_IF_ERROR(CheckPositions(m, positions));
  KVTIER_RETURN_IF_ERROR(m.geometry.layers[layer.value()] == LayerKind::kGlobal
                             ? CheckScoredRows(m, band, rows, positions)
                             : CheckSlidingRows(m, rows, positions));
  return CheckCodes(m.geometry, codec, rows);
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ReadPositions(const HeadRows& head) {
  if (head.position_code.empty()) {
    return std::vector<uint32_t>(head.positions.begin(), head.positions.end());
  }
  return DecodePositions(head.position_code, head.rows);
}

SegmentBuilder::SegmentBuilder(Geometry geometry, CodecId codec, std::vector<uint32_t> rows,
                               AlignedBytes bytes, AlignedBytes positions)
    : geometry_(std::move(geometry)),
      codec_(codec),
      rows_(std::move(rows)),
      positions_(std::move(positions)),
      bytes_(std::move(bytes)) {
  offsets_.reserve(rows_.size());
  first_rows_.reserve(rows_.size());
  uint64_t offset = 0;
  uint64_t first_row = 0;
  for (uint32_t head = 0; head < rows_.size(); ++head) {
    offsets_.push_back(offset);
    first_rows_.push_back(first_row);
    offset += LayOut(head).bytes;
    first_row += rows_[head];
  }
}

std::span<uint32_t> SegmentBuilder::positions(uint32_t head) {
  return positions_.As<uint32_t>().subspan(first_rows_[head], rows_[head]);
}

HeadBlockLayout SegmentBuilder::LayOut(uint32_t head) const {
  return LayOutHeadBlock(geometry_, codec_, rows_[head], rows_[head] * kPositionCodeBytesMax);
}

absl::StatusOr<SegmentBuilder> SegmentBuilder::Create(const Geometry& geometry, CodecId codec,
                                                      std::span<const uint32_t> rows) {
  KVTIER_RETURN_IF_ERROR(geometry.Validate());
  if (rows.size() != geometry.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("segment: rows of ", rows.size(),
                                                   " heads, the geometry has ", geometry.kv_heads));
  }
  uint64_t bytes = 0;
  uint64_t all_rows = 0;
  for (uint32_t head_rows : rows) {
    all_rows += head_rows;
    bytes += LayOutHeadBlock(geometry, codec, head_rows, head_rows * kPositionCodeBytesMax).bytes;
  }
  if (bytes > limits::kSegmentBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "segment: ", bytes, " bytes, at most kSegmentBytesMax = ", limits::kSegmentBytesMax));
  }
  // Zeroed for the padding, and so that a row nobody wrote never carries another tenant's memory.
  KVTIER_ASSIGN_OR_RETURN(AlignedBytes memory, AlignedBytes::TryAllocate(bytes));
  const uint64_t encoded_rows = StoresPlainPositions(codec) ? 0 : all_rows;
  KVTIER_ASSIGN_OR_RETURN(AlignedBytes positions,
                          AlignedBytes::TryAllocate(encoded_rows * sizeof(uint32_t)));
  return SegmentBuilder(geometry, codec, std::vector<uint32_t>(rows.begin(), rows.end()),
                        std::move(memory), std::move(positions));
}

HeadRowsMut SegmentBuilder::head(uint32_t head) {
  KVTIER_CHECK_LT(head, rows_.size());
  const uint32_t rows = rows_[head];
  HeadRowsMut view;
  if (rows == 0) return view;
  const HeadBlockLayout at = LayOut(head);
  std::byte* block = bytes_.data() + offsets_[head];
  if (StoresPlainPositions(codec_)) {
    view.positions = {reinterpret_cast<uint32_t*>(block + at.positions), rows};
  } else {
    view.positions = positions(head);
  }
  view.log_scores = {reinterpret_cast<float16*>(block + at.log_scores), rows};
  view.keys = block + at.keys;
  view.values = block + at.values;
  if (EncodedScaleBytes(codec_) > 0) {
    view.key_scales = block + at.key_scales;
    view.value_scales = block + at.value_scales;
  }
  return view;
}

uint64_t SegmentBuilder::FinishBlock(uint32_t head, std::byte* block) {
  const HeadBlockLayout at = LayOut(head);
  if (rows_[head] == 0 || StoresPlainPositions(codec_)) return at.bytes;
  return at.positions + AlignUpSegment(EncodePositions(positions(head), block + at.positions));
}

SegmentBuilder::Sealed SegmentBuilder::Seal() && {
  Sealed sealed;
  sealed.entry.codec = codec_;
  sealed.entry.heads.reserve(rows_.size());
  uint64_t end = 0;
  for (uint32_t head = 0; head < rows_.size(); ++head) {
    HeadEntry entry;
    entry.rows = rows_[head];
    std::byte* block = bytes_.data() + offsets_[head];
    entry.encoded_bytes = FinishBlock(head, block);
    // Blocks move down over what the position codes before them did not need.
    if (end != offsets_[head]) std::memmove(bytes_.data() + end, block, entry.encoded_bytes);
    entry.crc32c = ComputeCrc32c(std::as_const(bytes_).span().subspan(end, entry.encoded_bytes));
    end += entry.encoded_bytes;
    sealed.entry.heads.push_back(entry);
  }
  bytes_.Truncate(end);
  sealed.bytes = std::move(bytes_);
  return sealed;
}

absl::Status EncodeHeadRows(const Geometry& geometry, CodecId codec, uint32_t rows,
                            const std::byte* keys, const std::byte* values,
                            const HeadRowsMut& out) {
  const RowCodec* row_codec = FindRowCodec(codec);
  if (row_codec == nullptr) {
    std::memcpy(out.keys, keys, rows * geometry.row_bytes());
    std::memcpy(out.values, values, rows * geometry.row_bytes());
    return absl::OkStatus();
  }
  const auto encode = [&](absl::string_view what, const std::byte* from, std::byte* codes,
                          std::byte* scales) {
    const absl::Status status =
        EncodeRows(*row_codec, geometry.dtype, from, rows, geometry.head_dim, codes, scales);
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
  };
  KVTIER_RETURN_IF_ERROR(encode("keys", keys, out.keys, out.key_scales));
  return encode("values", values, out.values, out.value_scales);
}

absl::StatusOr<HeadRows> ReadHead(const Geometry& geometry, const SegmentEntry& entry,
                                  HeadRange range, std::span<const std::byte> segment,
                                  uint32_t head) {
  KVTIER_RETURN_IF_ERROR(CheckHeadRange(entry, range));
  if (head < range.begin || head >= range.end) {
    return absl::OutOfRangeError(
        absl::StrCat("head ", head, " outside heads [", range.begin, ", ", range.end, ")"));
  }
  uint64_t offset = 0;
  HeadBlockLayout at;
  uint64_t bytes = 0;  // No overflow: each term is what a 32-bit row count takes.
  for (uint32_t h = range.begin; h < range.end; ++h) {
    const HeadEntry& each = entry.heads[h];
    const absl::StatusOr<HeadBlockLayout> block =
        LayOutStoredBlock(geometry, entry.codec, each.rows, each.encoded_bytes);
    if (!block.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("segment: head ", h, ": ", block.status().message()));
    }
    if (h == head) {
      offset = bytes;
      at = *block;
    }
    bytes += each.encoded_bytes;
  }
  if (bytes != segment.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment: has ", segment.size(), " bytes, its entry says ", bytes));
  }
  HeadRows view;
  view.rows = entry.heads[head].rows;
  if (view.rows == 0) return view;
  if (reinterpret_cast<uintptr_t>(segment.data()) % alignof(uint32_t) != 0) {
    return absl::InvalidArgumentError("segment: bytes are not aligned");
  }
  const std::byte* block = segment.data() + offset;
  if (StoresPlainPositions(entry.codec)) {
    view.positions = {reinterpret_cast<const uint32_t*>(block + at.positions), view.rows};
  } else {
    view.position_code = {block + at.positions, at.bytes - at.positions};
  }
  view.log_scores = {reinterpret_cast<const float16*>(block + at.log_scores), view.rows};
  view.keys = block + at.keys;
  view.values = block + at.values;
  if (EncodedScaleBytes(entry.codec) > 0) {
    view.key_scales = block + at.key_scales;
    view.value_scales = block + at.value_scales;
  }
  return view;
}

absl::Status VerifySegment(const SegmentEntry& entry, HeadRange range,
                           std::span<const std::byte> segment) {
  KVTIER_RETURN_IF_ERROR(CheckHeadRange(entry, range));
  std::span<const std::byte> rest = segment;
  for (uint32_t head = range.begin; head < range.end; ++head) {
    const HeadEntry& expected = entry.heads[head];
    if (expected.encoded_bytes > rest.size()) {
      return absl::DataLossError(absl::StrCat("segment: truncated in head ", head));
    }
    if (ComputeCrc32c(rest.first(expected.encoded_bytes)) != expected.crc32c) {
      return absl::DataLossError(absl::StrCat("segment: CRC32C of head ", head, " does not match"));
    }
    rest = rest.subspan(expected.encoded_bytes);
  }
  if (!rest.empty()) {
    return absl::DataLossError(
        absl::StrCat("segment: ", rest.size(), " bytes after the last head"));
  }
  return absl::OkStatus();
}

absl::Status VerifySegmentContent(const Manifest& manifest, BandIndex band, LayerIndex layer,
                                  std::span<const std::byte> segment) {
  if (band.value() >= manifest.bands.size() || layer.value() >= manifest.geometry.layer_count()) {
    return absl::OutOfRangeError(
        absl::StrCat("segment: no band ", band.value(), " layer ", layer.value()));
  }
  const SegmentEntry& entry = manifest.segment(band, layer);
  KVTIER_RETURN_IF_ERROR(
      VerifySegment(entry, {0, static_cast<uint32_t>(entry.heads.size())}, segment));
  return CheckSegmentContent(manifest, band, layer, segment);
}

absl::Status CheckSegmentContent(const Manifest& manifest, BandIndex band, LayerIndex layer,
                                 std::span<const std::byte> segment) {
  if (band.value() >= manifest.bands.size() || layer.value() >= manifest.geometry.layer_count()) {
    return absl::OutOfRangeError(
        absl::StrCat("segment: no band ", band.value(), " layer ", layer.value()));
  }
  const SegmentEntry& entry = manifest.segment(band, layer);
  const HeadRange all{0, static_cast<uint32_t>(entry.heads.size())};
  if (segment.size() != entry.encoded_bytes()) {
    return absl::DataLossError(
        absl::StrCat("segment: ", segment.size(), " bytes of ", entry.encoded_bytes()));
  }
  uint64_t offset = 0;
  for (uint32_t head = all.begin; head < all.end; ++head) {
    KVTIER_ASSIGN_OR_RETURN(const HeadRows rows,
                            ReadHead(manifest.geometry, entry, all, segment, head));
    const uint64_t block_bytes = entry.heads[head].encoded_bytes;
    KVTIER_ASSIGN_OR_RETURN(
        const HeadBlockLayout at,
        LayOutStoredBlock(manifest.geometry, entry.codec, rows.rows, block_bytes));
    const absl::Status status =
        CheckHeadContent(manifest, band, layer, rows, at, segment.subspan(offset, block_bytes));
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("segment: head ", head, ": ", status.message()));
    }
    offset += block_bytes;
  }
  return absl::OkStatus();
}

}  // namespace kvtier
