// Flags that every kvtier server has, and what main does with them before anything else.
#ifndef KVTIER_SERVICES_SERVER_FLAGS_H_
#define KVTIER_SERVICES_SERVER_FLAGS_H_

#include <string>

#include "absl/flags/declare.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/server.h"

ABSL_DECLARE_FLAG(std::string, listen);

namespace kvtier {

// Parses the command line, starts logging, tunes malloc, and returns what Server::Start needs.
// `usage` is the program's page of help; `listen` the default address. Prints and exits with 2 on a
// command line that makes no sense (an unknown flag, a positional argument).
ServerOptions StartProgram(int argc, char** argv, absl::string_view component,
                           absl::string_view usage, absl::string_view listen);

// Logs the error and returns main's exit status.
int ExitWith(const absl::Status& status);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_SERVER_FLAGS_H_
