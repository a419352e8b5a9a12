// Where this checkout and its build are. The paths are compiled into this library alone, so that
// clones of the repository share what a compiler cache holds of the tests.
#ifndef KVTIER_TESTS_TESTING_PATHS_H_
#define KVTIER_TESTS_TESTING_PATHS_H_

#include <string>

#include "absl/strings/string_view.h"

namespace kvtier {

// `relative` is relative to the root of the repository: "tests/golden/rope.json".
std::string SourcePath(absl::string_view relative);

// Of a product binary: "kvtier-store".
std::string ProgramPath(absl::string_view name);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_PATHS_H_
