// Copying and summing in one pass over memory: for bytes that come in from outside and are to be
// kept and verified. Thread-safe: a plain function.
#ifndef KVTIER_BASE_COPY_CRC32C_H_
#define KVTIER_BASE_COPY_CRC32C_H_

#include <cstddef>
#include <span>

#include "base/crc32c.h"

namespace kvtier {

// Copies `bytes` to `to` and returns what ExtendCrc32c would: each piece is summed while it is in
// the first-level cache. REQUIRES: `to` has room for all of them and does not overlap them.
Crc32c CopyAndExtendCrc32c(Crc32c crc, std::span<const std::byte> bytes, std::byte* to);

}  // namespace kvtier

#endif  // KVTIER_BASE_COPY_CRC32C_H_
