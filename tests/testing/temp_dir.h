// A new empty folder for one test, removed with everything in it when the object dies.
//
//   TempDir dir;
//   Open(dir.File("db"));
#ifndef KVTIER_TESTS_TESTING_TEMP_DIR_H_
#define KVTIER_TESTS_TESTING_TEMP_DIR_H_

#include <filesystem>
#include <string>

#include "absl/strings/string_view.h"

namespace kvtier {

class TempDir {
 public:
  // Under $TEST_TMPDIR or the system's temporary folder. Dies if it cannot be made.
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // The path of `name` inside; nothing is created.
  std::string File(absl::string_view name) const { return path_ / std::string(name); }

 private:
  std::filesystem::path path_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_TEMP_DIR_H_
