// Ascending cache positions in about one byte each: the gaps between them, less one (the first
// position as it is), each as LEB128: seven bits to a byte, low bits first, the top bit set in all
// but the last byte. The shortest form only, so that positions have one code. A position is below
// 2^21 (limits.h), so a gap takes at most 3 bytes. Plain functions: any thread may call.
#ifndef KVTIER_KVCACHE_POSITION_CODE_H_
#define KVTIER_KVCACHE_POSITION_CODE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace kvtier {

inline constexpr uint64_t kPositionCodeBytesMin = 1;  // Of one position.
inline constexpr uint64_t kPositionCodeBytesMax = 3;
inline constexpr uint64_t kPositionCodePaddingMax = 63;  // Up to kSegmentAlignment.

// What the code of one gap takes.
constexpr uint64_t PositionGapBytes(uint32_t gap) {
  return gap < 1u << 7 ? 1 : (gap < 1u << 14 ? 2 : 3);
}

// Writes at most kPositionCodeBytesMax * positions.size() bytes; returns how many.
// REQUIRES: strictly ascending, below 2^21.
uint64_t EncodePositions(std::span<const uint32_t> positions, std::byte* to);

// The `rows` positions in `code`, whose end is padded with at most kPositionCodePaddingMax zeros.
//   DATA_LOSS  the code ends early or is not the shortest form, a position is 2^21 or more, other
//              bytes or more padding follow
absl::StatusOr<std::vector<uint32_t>> DecodePositions(std::span<const std::byte> code,
                                                      uint32_t rows);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_POSITION_CODE_H_
