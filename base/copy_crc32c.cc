#include "base/copy_crc32c.h"

#include <algorithm>
#include <cstring>

namespace kvtier {

Crc32c CopyAndExtendCrc32c(Crc32c crc, std::span<const std::byte> bytes, std::byte* to) {
  // Half of the smallest first-level cache in use, so that source and copy both fit.
  constexpr size_t kPieceBytes = size_t{16} << 10;
  while (!bytes.empty()) {
    const size_t count = std::min(bytes.size(), kPieceBytes);
    std::memcpy(to, bytes.data(), count);
    crc = ExtendCrc32c(crc, {to, count});
    bytes = bytes.subspan(count);
    to += count;
  }
  return crc;
}

}  // namespace kvtier
