#include "services/file_mode.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvtier {
namespace {

constexpr uint32_t kOwnerReadsAndWrites = 0600;

}  // namespace

bool AbslParseFlag(absl::string_view text, FileMode* mode, std::string* error) {
  const bool has_zero = text.size() == 4 && text[0] == '0';
  const absl::string_view digits = has_zero ? text.substr(1) : text;
  const auto is_octal = [](char c) { return '0' <= c && c <= '7'; };
  if (digits.size() != 3 || !std::all_of(digits.begin(), digits.end(), is_octal)) {
    *error = "a mode is three octal digits, for owner, group and others, e.g. 0660";
    return false;
  }
  uint32_t bits = 0;
  for (const char c : digits) bits = bits * 8 + static_cast<uint32_t>(c - '0');
  if ((bits & kOwnerReadsAndWrites) != kOwnerReadsAndWrites) {
    *error = absl::StrCat(AbslUnparseFlag({.bits = bits}),
                          " (octal) keeps the owner from reading or writing");
    return false;
  }
  mode->bits = bits;
  return true;
}

std::string AbslUnparseFlag(FileMode mode) { return absl::StrFormat("%04o", mode.bits); }

}  // namespace kvtier
