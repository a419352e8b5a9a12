#include "tests/testing/paths.h"

#include "absl/strings/str_cat.h"

namespace kvtier {

std::string SourcePath(absl::string_view relative) {
  return absl::StrCat(KVTIER_SOURCE_DIR, "/", relative);
}

std::string ProgramPath(absl::string_view name) { return absl::StrCat(KVTIER_BIN_DIR, "/", name); }

}  // namespace kvtier
