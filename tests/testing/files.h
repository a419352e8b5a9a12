// Whole files, and the damage that fault tests do to them. Every function dies if it cannot.
#ifndef KVTIER_TESTS_TESTING_FILES_H_
#define KVTIER_TESTS_TESTING_FILES_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace kvtier {

std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, absl::string_view content);

// Inverts bit `bit` (0..7) of the byte at `offset`: the smallest damage a checksum must see.
void FlipBit(const std::string& path, uint64_t offset, int bit = 0);

// Cuts the file to its first `size` bytes, as a torn write leaves it.
void TruncateFile(const std::string& path, uint64_t size);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_FILES_H_
