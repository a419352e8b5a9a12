#include "tests/testing/temp_dir.h"

#include <stdlib.h>

#include <system_error>

#include "base/log.h"

namespace kvtier {

TempDir::TempDir() {
  const char* const root = getenv("TEST_TMPDIR");
  std::string pattern =
      (root != nullptr ? std::filesystem::path(root) : std::filesystem::temp_directory_path()) /
      "kvtier_test.XXXXXX";
  KVTIER_CHECK(mkdtemp(pattern.data()) != nullptr) << pattern;
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  if (error) KVTIER_LOG(WARNING) << "cannot remove " << path_ << ": " << error.message();
}

}  // namespace kvtier
