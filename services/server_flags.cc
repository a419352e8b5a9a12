#include "services/server_flags.h"

#include <cstdlib>
#include <iostream>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "base/log.h"

ABSL_FLAG(std::string, listen, "", "host:port to serve gRPC on; port 0 takes a free one");
ABSL_FLAG(std::string, metrics_listen, "127.0.0.1:0",
          "host:port to serve /metrics on; port 0 takes a free one; empty: no metrics");
ABSL_FLAG(std::string, port_file, "",
          "write '<grpc port> <metrics port>' to this file once both accept connections");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(20),
          "how long running calls may go on after SIGTERM");
ABSL_FLAG(std::string, log_format, "text", "text, or json: one object per line");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning or error");

namespace kvtier {
namespace {

[[noreturn]] void ExitUsage(absl::string_view message) {
  std::cerr << message << "\nTry --help.\n";
  std::exit(2);
}

// --help shows kvtier's own flags, not those of the libraries.
bool IsOurFlagFile(absl::string_view file) {
  return absl::StrContains(file, "services/") && !absl::StrContains(file, "absl/");
}

}  // namespace

ServerOptions StartProgram(int argc, char** argv, absl::string_view component,
                           absl::string_view usage, absl::string_view listen) {
  TuneMalloc();
  absl::SetProgramUsageMessage(usage);
  absl::FlagsUsageConfig config;
  config.contains_helpshort_flags = IsOurFlagFile;
  config.contains_help_flags = IsOurFlagFile;
  absl::SetFlagsUsageConfig(config);
  absl::SetFlag(&FLAGS_listen, std::string(listen));
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    ExitUsage(std::string(component) + ": unexpected argument '" + rest[1] + "'");
  }
  const absl::StatusOr<LogFormat> format = ParseLogFormat(absl::GetFlag(FLAGS_log_format));
  if (!format.ok()) ExitUsage(std::string(format.status().message()));
  const absl::StatusOr<LogSeverity> level = ParseLogSeverity(absl::GetFlag(FLAGS_log_level));
  if (!level.ok()) ExitUsage(std::string(level.status().message()));
  InitLogging({.format = *format, .min_level = *level, .component = std::string(component)});
  return ServerOptions{.listen = absl::GetFlag(FLAGS_listen),
                       .metrics_listen = absl::GetFlag(FLAGS_metrics_listen),
                       .port_file = absl::GetFlag(FLAGS_port_file),
                       .drain_timeout = absl::GetFlag(FLAGS_drain_timeout)};
}

int ExitWith(const absl::Status& status) {
  if (status.ok()) return 0;
  KVTIER_LOG(ERROR) << status;
  return 1;
}

}  // namespace kvtier
