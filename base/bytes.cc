#include "base/bytes.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace kvtier {

void ByteWriter::WriteBytes(ByteSpan bytes) {
  if (text_ != nullptr) {
    text_->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  } else {
    bytes_->insert(bytes_->end(), bytes.begin(), bytes.end());
  }
}

void ByteWriter::WriteZeros(size_t count) {
  if (text_ != nullptr) {
    text_->append(count, '\0');
  } else {
    bytes_->resize(bytes_->size() + count);
  }
}

absl::StatusOr<ByteSpan> ByteReader::ReadBytes(uint64_t count) {
  if (count > remaining()) return Truncated(count);
  const ByteSpan bytes = bytes_.subspan(offset_, count);
  offset_ += count;
  return bytes;
}

absl::StatusOr<uint32_t> ByteReader::ReadCount(uint32_t count_max, size_t item_bytes_min) {
  KVTIER_CHECK_GT(item_bytes_min, 0u);
  const size_t start = offset_;
  absl::StatusOr<uint32_t> count = ReadU32();
  if (!count.ok()) return count;
  if (*count > count_max) {
    offset_ = start;
    return absl::InvalidArgumentError(
        absl::StrCat("count ", *count, " at offset ", start, " is above ", count_max));
  }
  if (*count > remaining() / item_bytes_min) {
    const size_t left = remaining();
    offset_ = start;
    return absl::InvalidArgumentError(absl::StrCat("truncated: ", *count, " items of at least ",
                                                   item_bytes_min, " bytes after offset ", start,
                                                   ", ", left, " bytes remain"));
  }
  return count;
}

absl::Status ByteReader::ExpectEnd() const {
  if (remaining() == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(remaining(), " bytes too many at offset ", offset_));
}

absl::Status ByteReader::Truncated(uint64_t wanted_bytes) const {
  return absl::InvalidArgumentError(absl::StrCat("truncated: ", wanted_bytes,
                                                 " bytes wanted at offset ", offset_, ", ",
                                                 remaining(), " remain"));
}

}  // namespace kvtier
