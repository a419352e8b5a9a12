// Command lines of kvtier's programs: absl flags, with exact errors instead of an exit inside the
// library, '-' and '_' alike in names (--token-ids is --token_ids), and help that shows only what
// the program or subcommand takes.
#ifndef KVTIER_SERVICES_COMMAND_LINE_H_
#define KVTIER_SERVICES_COMMAND_LINE_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

struct CommandLine {
  std::vector<std::string> arguments;  // What is no flag, in order.
  bool help = false;                   // --help or -h was there; the flags are not set then.
};

// Sets flags from `words` (without the program's name): --name=value, --name value, --name and
// --noname for bool; "--" ends the flags. A repeated flag counts as its last. `allowed` lists the
// flags that may appear.
//   INVALID_ARGUMENT  unknown or not allowed, without a value, or a value that does not parse (the
//                     flag is named); flags before it are set
// REQUIRES: no other thread reads flags; every name in `allowed` is a flag.
absl::StatusOr<CommandLine> ParseFlags(std::span<const char* const> words,
                                       const std::vector<std::string>& allowed);

// The flags that are defined in files whose path contains `folder` ("services/") and not `but_not`,
// sorted by name.
std::vector<std::string> FlagsDefinedIn(absl::string_view folder, absl::string_view but_not);

// For --help: a paragraph per flag with its meaning and its value, which is the default as long as
// nothing has been parsed.
std::string FormatFlags(const std::vector<std::string>& names);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_COMMAND_LINE_H_
