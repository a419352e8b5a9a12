// Files of token ids: how contexts come in for models whose vocabulary is not bytes.
#ifndef KVTIER_COMPRESSOR_TOKEN_FILE_H_
#define KVTIER_COMPRESSOR_TOKEN_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvtier {

// A JSON array of numbers, or raw u32 little endian when the name ends in .u32.
// INVALID_ARGUMENT naming the file and what is wrong: unreadable, too long, an element that is no
// id (which one).
absl::StatusOr<std::vector<uint32_t>> ReadTokenIds(const std::string& path);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_TOKEN_FILE_H_
