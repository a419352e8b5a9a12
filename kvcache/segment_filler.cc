#include "kvcache/segment_filler.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/copy_crc32c.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {

SegmentFiller::SegmentFiller(const SegmentEntry& entry, HeadRange range, MutableByteSpan out,
                             Check check)
    : entry_(entry), out_(out), check_(check), head_(range.begin), head_end_(range.end) {
  KVTIER_CHECK_LE(range.begin, range.end);
  KVTIER_CHECK_LE(range.end, entry.heads.size());
  uint64_t bytes = 0;
  for (uint32_t head = range.begin; head < range.end; ++head) {
    bytes += entry.heads[head].encoded_bytes;
  }
  KVTIER_CHECK_EQ(bytes, out.size()) << "the buffer is not of these heads";
  if (head_ < head_end_) head_left_ = entry_.heads[head_].encoded_bytes;
}

absl::Status SegmentFiller::FinishHeads() {
  while (head_ < head_end_ && head_left_ == 0) {
    if (check_ == Check::kVerify && crc_ != entry_.heads[head_].crc32c) {
      return absl::DataLossError(
          absl::StrCat("segment: CRC32C of head ", head_, " does not match"));
    }
    crc_ = Crc32c();
    if (++head_ < head_end_) head_left_ = entry_.heads[head_].encoded_bytes;
  }
  return absl::OkStatus();
}

absl::Status SegmentFiller::Append(ByteSpan bytes) {
  KVTIER_CHECK_LE(bytes.size(), out_.size() - filled_) << "more than the segment has";
  KVTIER_RETURN_IF_ERROR(FinishHeads());  // Empty heads at the front.
  while (!bytes.empty()) {
    const ByteSpan piece = bytes.first(std::min<uint64_t>(bytes.size(), head_left_));
    std::byte* const to = out_.data() + filled_;
    if (check_ == Check::kVerify) {
      crc_ = CopyAndExtendCrc32c(crc_, piece, to);
    } else {
      std::memcpy(to, piece.data(), piece.size());
    }
    filled_ += piece.size();
    head_left_ -= piece.size();
    bytes = bytes.subspan(piece.size());
    KVTIER_RETURN_IF_ERROR(FinishHeads());
  }
  return absl::OkStatus();
}

}  // namespace kvtier
