// kvtierctl's subcommands. Each prints to stdout what was asked for (a table, or with --json one
// JSON value), to stderr everything else, and returns a status that kvtierctl.cc turns into an exit
// code.
#ifndef KVTIER_SERVICES_CTL_COMMANDS_H_
#define KVTIER_SERVICES_CTL_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace kvtier::ctl {

using Arguments = std::vector<std::string>;  // Positional arguments after the subcommand.

absl::Status Compress(const Arguments& arguments);
absl::Status Ask(const Arguments& arguments);
absl::Status List(const Arguments& arguments);
absl::Status Stat(const Arguments& arguments);
absl::Status Reband(const Arguments& arguments);
absl::Status Fetch(const Arguments& arguments);
absl::Status Pin(const Arguments& arguments);
absl::Status Unpin(const Arguments& arguments);
absl::Status Ttl(const Arguments& arguments);
absl::Status Watch(const Arguments& arguments);
absl::Status Remove(const Arguments& arguments);
absl::Status Verify(const Arguments& arguments);
absl::Status Models(const Arguments& arguments);
absl::Status Stats(const Arguments& arguments);

}  // namespace kvtier::ctl

#endif  // KVTIER_SERVICES_CTL_COMMANDS_H_
