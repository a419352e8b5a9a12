#include "kvcache/segment.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

static_assert(AlignedBytes::kAlignmentBytes % kSegmentAlignment == 0);

constexpr uint64_t AlignUp(uint64_t bytes) {
  return (bytes + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
}

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

// The bytes between the arrays of a head block.
bool PaddingIsZero(const Geometry& geometry, uint32_t rows, std::span<const std::byte> block) {
  const HeadBlockLayout at = LayOutHeadBlock(geometry, rows);
  const uint64_t row_array = rows * geometry.row_bytes();
  const auto gap = [&](uint64_t begin, uint64_t end) {
    return AllZero(block.subspan(begin, end - begin));
  };
  return gap(at.positions + rows * sizeof(uint32_t), at.log_scores) &&
         gap(at.log_scores + rows * sizeof(float16), at.keys) &&
         gap(at.keys + row_array, at.values) && gap(at.values + row_array, at.bytes);
}

// Rows of a scored layer: the protected ones first and only in band 0, each score as its row wants.
absl::Status CheckScoredRows(const Manifest& m, BandIndex band, const HeadRows& rows) {
  const uint64_t protected_tokens = m.protected_tokens();
  for (uint32_t row = 0; row < rows.rows; ++row) {
    const uint32_t position = rows.positions[row];
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
absl::Status CheckSlidingRows(const Manifest& m, const HeadRows& rows) {
  for (uint32_t row = 0; row < rows.rows; ++row) {
    if (rows.positions[row] != m.logical_length() - rows.rows + row) {
      return absl::DataLossError(
          absl::StrCat("row ", row, ": position ", rows.positions[row], " is not of the window"));
    }
    const float score = static_cast<float>(rows.log_scores[row]);
    if (!std::isinf(score) || score < 0) {
      return absl::DataLossError(absl::StrCat("row ", row, ": log score ", score, " of a window"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPositions(const Manifest& m, const HeadRows& rows) {
  for (uint32_t row = 0; row < rows.rows; ++row) {
    if (rows.positions[row] >= m.logical_length()) {
      return absl::DataLossError(absl::StrCat("row ", row, ": position ", rows.positions[row],
                                              " of ", m.logical_length()));
    }
    if (row > 0 && rows.positions[row] <= rows.positions[row - 1]) {
      return absl::DataLossError(absl::StrCat("row ", row, ": position ", rows.positions[row],
                                              " after ", rows.positions[row - 1]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHeadContent(const Manifest& m, BandIndex band, LayerIndex layer,
                              const HeadRows& rows, std::span<const std::byte> block) {
  if (!PaddingIsZero(m.geometry, rows.rows, block)) {
    return absl::DataLossError("padding is not zero");
  }
  KVTIER_RETURN_IF_ERROR(CheckPositions(m, rows));
  return m.geometry.layers[layer.value()] == LayerKind::kGlobal ? CheckScoredRows(m, band, rows)
                                                                : CheckSlidingRows(m, rows);
}

}  // namespace

HeadBlockLayout LayOutHeadBlock(const Geometry& geometry, uint32_t rows) {
  const uint64_t row_array = AlignUp(rows * geometry.row_bytes());
  HeadBlockLayout at;
  at.log_scores = AlignUp(rows * sizeof(uint32_t));
  at.keys = at.log_scores + AlignUp(rows * sizeof(float16));
  at.values = at.keys + row_array;
  at.bytes = at.values + row_array;
  return at;
}

SegmentBuilder::SegmentBuilder(Geometry geometry, std::vector<uint32_t> rows, AlignedBytes bytes)
    : geometry_(std::move(geometry)), rows_(std::move(rows)), bytes_(std::move(bytes)) {
  offsets_.reserve(rows_.size());
  uint64_t offset = 0;
  for (uint32_t head_rows : rows_) {
    offsets_.push_back(offset);
    offset += LayOutHeadBlock(geometry_, head_rows).bytes;
  }
}

absl::StatusOr<SegmentBuilder> SegmentBuilder::Create(const Geometry& geometry,
                                                      std::span<const uint32_t> rows) {
  KVTIER_RETURN_IF_ERROR(geometry.Validate());
  if (rows.size() != geometry.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("segment: rows of ", rows.size(),
                                                   " heads, the geometry has ", geometry.kv_heads));
  }
  uint64_t bytes = 0;
  for (uint32_t head_rows : rows) bytes += LayOutHeadBlock(geometry, head_rows).bytes;
  if (bytes > limits::kSegmentBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "segment: ", bytes, " bytes, at most kSegmentBytesMax = ", limits::kSegmentBytesMax));
  }
  // Zeroed for the padding, and so that a row nobody wrote never carries another tenant's memory.
  KVTIER_ASSIGN_OR_RETURN(AlignedBytes memory, AlignedBytes::TryAllocate(bytes));
  return SegmentBuilder(geometry, std::vector<uint32_t>(rows.begin(), rows.end()),
                        std::move(memory));
}

HeadRowsMut SegmentBuilder::head(uint32_t head) {
  KVTIER_CHECK_LT(head, rows_.size());
  const uint32_t rows = rows_[head];
  HeadRowsMut view;
  if (rows == 0) return view;
  const HeadBlockLayout at = LayOutHeadBlock(geometry_, rows);
  std::byte* block = bytes_.data() + offsets_[head];
  view.positions = {reinterpret_cast<uint32_t*>(block + at.positions), rows};
  view.log_scores = {reinterpret_cast<float16*>(block + at.log_scores), rows};
  view.keys = block + at.keys;
  view.values = block + at.values;
  return view;
}

SegmentBuilder::Sealed SegmentBuilder::Seal() && {
  Sealed sealed;
  sealed.entry.codec = CodecId::kRaw;
  sealed.entry.heads.reserve(rows_.size());
  for (size_t head = 0; head < rows_.size(); ++head) {
    HeadEntry entry;
    entry.rows = rows_[head];
    entry.encoded_bytes = LayOutHeadBlock(geometry_, entry.rows).bytes;
    entry.crc32c =
        ComputeCrc32c(std::as_const(bytes_).span().subspan(offsets_[head], entry.encoded_bytes));
    sealed.entry.heads.push_back(entry);
  }
  sealed.bytes = std::move(bytes_);
  return sealed;
}

absl::StatusOr<HeadRows> ReadHead(const Geometry& geometry, const SegmentEntry& entry,
                                  HeadRange range, std::span<const std::byte> segment,
                                  uint32_t head) {
  if (entry.codec != CodecId::kRaw) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment: unknown codec ", static_cast<int>(entry.codec)));
  }
  KVTIER_RETURN_IF_ERROR(CheckHeadRange(entry, range));
  if (head < range.begin || head >= range.end) {
    return absl::OutOfRangeError(
        absl::StrCat("head ", head, " outside heads [", range.begin, ", ", range.end, ")"));
  }
  uint64_t offset = 0;
  uint64_t bytes = 0;  // No overflow: each term is what a 32-bit row count takes.
  for (uint32_t h = range.begin; h < range.end; ++h) {
    const HeadEntry& each = entry.heads[h];
    if (each.encoded_bytes != LayOutHeadBlock(geometry, each.rows).bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "segment: head ", h, " has ", each.encoded_bytes, " bytes for ", each.rows, " rows"));
    }
    if (h == head) offset = bytes;
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
  const HeadBlockLayout at = LayOutHeadBlock(geometry, view.rows);
  const std::byte* block = segment.data() + offset;
  view.positions = {reinterpret_cast<const uint32_t*>(block + at.positions), view.rows};
  view.log_scores = {reinterpret_cast<const float16*>(block + at.log_scores), view.rows};
  view.keys = block + at.keys;
  view.values = block + at.values;
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
  const HeadRange all{0, static_cast<uint32_t>(entry.heads.size())};
  KVTIER_RETURN_IF_ERROR(VerifySegment(entry, all, segment));
  uint64_t offset = 0;
  for (uint32_t head = all.begin; head < all.end; ++head) {
    KVTIER_ASSIGN_OR_RETURN(const HeadRows rows,
                            ReadHead(manifest.geometry, entry, all, segment, head));
    const uint64_t block_bytes = entry.heads[head].encoded_bytes;
    const absl::Status status =
        CheckHeadContent(manifest, band, layer, rows, segment.subspan(offset, block_bytes));
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("segment: head ", head, ": ", status.message()));
    }
    offset += block_bytes;
  }
  return absl::OkStatus();
}

}  // namespace kvtier
