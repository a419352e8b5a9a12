// Puts one segment together from pieces that arrive in order, and verifies it on the way: each byte
// is copied and summed in one pass, so a receiver reads memory once. Used by
// both ends that receive: the client's in a fetch, the store's in a put.
//
//   SegmentFiller filler(entry, heads, buffer.span(), SegmentFiller::Check::kVerify);
//   while (!filler.done()) KVTIER_RETURN_IF_ERROR(filler.Append(NextPiece()));
#ifndef KVTIER_KVCACHE_SEGMENT_FILLER_H_
#define KVTIER_KVCACHE_SEGMENT_FILLER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"

namespace kvtier {

// Not thread-safe.
class SegmentFiller {
 public:
  enum class Check {
    kVerify,  // Every head's CRC32C, as soon as its last byte is there.
    kTrust,   // None: the caller verifies the bytes itself (VerifySegment), or has no need to.
  };

  // `entry` and the memory of `out` are the caller's and outlive the filler.
  // REQUIRES: `range` is of the entry, and `out` has just its bytes.
  SegmentFiller(const SegmentEntry& entry, HeadRange range, MutableByteSpan out, Check check);

  // The next bytes. DATA_LOSS naming the head whose CRC32C differs: what is in `out` is worth
  // nothing then, and the filler is to be thrown away. REQUIRES: no more than are missing.
  absl::Status Append(ByteSpan bytes);

  uint64_t filled() const { return filled_; }
  uint64_t missing() const { return out_.size() - filled_; }
  bool done() const { return missing() == 0; }

 private:
  // Judges the heads that end where we are.
  absl::Status FinishHeads();

  const SegmentEntry& entry_;
  const MutableByteSpan out_;
  const Check check_;
  uint64_t filled_ = 0;
  uint32_t head_;  // The one being filled ...
  const uint32_t head_end_;
  uint64_t head_left_ = 0;  // ... its bytes that are missing ...
  Crc32c crc_;              // ... and the sum of those that are there.
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SEGMENT_FILLER_H_
