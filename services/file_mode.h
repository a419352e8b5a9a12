// The mode of a file as a flag's value: octal, as chmod takes it.
#ifndef KVTIER_SERVICES_FILE_MODE_H_
#define KVTIER_SERVICES_FILE_MODE_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace kvtier {

// Permissions of owner, group and others: [0, 0777].
struct FileMode {
  uint32_t bits = 0;
  friend bool operator==(const FileMode&, const FileMode&) = default;
};

// For ABSL_FLAG. "600", "0660": three octal digits, with or without a 0 before them. False, with
// the reason in `error`: anything else, and a mode that keeps its owner from reading or writing,
// which is what a number in another base looks like: 432 is 0660 in decimal, and 0432 would let
// everybody write.
bool AbslParseFlag(absl::string_view text, FileMode* mode, std::string* error);
std::string AbslUnparseFlag(FileMode mode);  // "0600"

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FILE_MODE_H_
