#include "kvcache/position_code.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"

namespace kvtier {
namespace {

constexpr uint32_t kPositionBits = 21;
static_assert(limits::kSystemTokensMax + limits::kContextTokensMax <= uint64_t{1} << kPositionBits);
static_assert(kPositionCodeBytesMax * 7 >= kPositionBits);

template <typename... Parts>
absl::Status Damaged(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat("position code: ", parts...));
}

}  // namespace

uint64_t EncodePositions(std::span<const uint32_t> positions, std::byte* to) {
  std::byte* const begin = to;
  uint32_t next = 0;  // The smallest position that may follow.
  for (const uint32_t position : positions) {
    KVTIER_CHECK(position >= next && position < 1u << kPositionBits)
        << "position " << position << " after " << int64_t{next} - 1;
    uint32_t gap = position - next;
    for (; gap >= 0x80; gap >>= 7) *to++ = static_cast<std::byte>(gap | 0x80);
    *to++ = static_cast<std::byte>(gap);
    next = position + 1;
  }
  return static_cast<uint64_t>(to - begin);
}

absl::StatusOr<std::vector<uint32_t>> DecodePositions(std::span<const std::byte> code,
                                                      uint32_t rows) {
  if (code.size() < rows * kPositionCodeBytesMin) {
    return Damaged(code.size(), " bytes for ", rows, " positions");
  }
  std::vector<uint32_t> positions;
  positions.reserve(rows);
  size_t at = 0;
  uint64_t next = 0;
  for (uint32_t row = 0; row < rows; ++row) {
    uint64_t gap = 0;
    for (uint32_t shift = 0;; shift += 7) {
      if (at == code.size()) return Damaged("ends in position ", row, " of ", rows);
      if (shift >= 7 * kPositionCodeBytesMax) return Damaged("position ", row, " is too long");
      const auto byte = std::to_integer<uint32_t>(code[at++]);
      gap |= uint64_t{byte & 0x7F} << shift;
      if (byte >= 0x80) continue;
      if (byte == 0 && shift > 0) return Damaged("position ", row, " is not in its shortest form");
      break;
    }
    if (next + gap >= uint64_t{1} << kPositionBits) {
      return Damaged("position ", row, " is ", next + gap, ", at most 2^21 - 1");
    }
    positions.push_back(static_cast<uint32_t>(next + gap));
    next += gap + 1;
  }
  if (code.size() - at > kPositionCodePaddingMax) {
    return Damaged(code.size() - at, " bytes of padding, at most ", kPositionCodePaddingMax);
  }
  if (!std::all_of(code.begin() + static_cast<ptrdiff_t>(at), code.end(),
                   [](std::byte b) { return b == std::byte{0}; })) {
    return Damaged("bytes follow the last position");
  }
  return positions;
}

}  // namespace kvtier
