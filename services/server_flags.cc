#include "services/server_flags.h"

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "services/command_line.h"

ABSL_FLAG(std::string, listen, "", "host:port to serve gRPC on; port 0 takes a free one");
ABSL_FLAG(std::string, metrics_listen, "127.0.0.1:0",
          "host:port to serve /metrics on; port 0 takes a free one; empty: no metrics");
ABSL_FLAG(std::string, port_file, "",
          "write '<grpc port> <metrics port>' to this file once both accept connections");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(20),
          "how long running calls may go on after SIGTERM");
ABSL_FLAG(uint64_t, grpc_buffer_mib, kvtier::kServerBufferBytes / kvtier::limits::kMiB,
          "most that gRPC may hold of received messages and of connections, in MiB");
ABSL_FLAG(std::string, log_format, "text", "text, or json: one object per line");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning or error");

namespace kvtier {
namespace {

[[noreturn]] void ExitUsage(absl::string_view component, absl::string_view message) {
  std::cerr << component << ": " << message << "\nTry --help.\n";
  std::exit(2);
}

}  // namespace

ServerOptions StartProgram(int argc, char** argv, absl::string_view component,
                           absl::string_view usage, absl::string_view listen) {
  TuneMalloc();
  absl::SetFlag(&FLAGS_listen, std::string(listen));
  // Not the flags of the libraries.
  const std::vector<std::string> flags = FlagsDefinedIn("services/", "absl/");
  const absl::StatusOr<CommandLine> line =
      ParseFlags(std::span(argv, static_cast<size_t>(argc)).subspan(1), flags);
  if (!line.ok()) ExitUsage(component, line.status().message());
  if (line->help) {
    std::cout << usage << "\n\nFlags, with their defaults:\n" << FormatFlags(flags);
    std::exit(0);
  }
  if (!line->arguments.empty()) {
    ExitUsage(component, "unexpected argument '" + line->arguments[0] + "'");
  }
  const absl::StatusOr<LogFormat> format = ParseLogFormat(absl::GetFlag(FLAGS_log_format));
  if (!format.ok()) ExitUsage(component, format.status().message());
  const absl::StatusOr<LogSeverity> level = ParseLogSeverity(absl::GetFlag(FLAGS_log_level));
  if (!level.ok()) ExitUsage(component, level.status().message());
  const uint64_t buffer_mib = absl::GetFlag(FLAGS_grpc_buffer_mib);
  constexpr uint64_t kBufferMibMin = kServerBufferBytesMin / limits::kMiB;
  constexpr uint64_t kBufferMibMax = uint64_t{1} << 20;
  if (buffer_mib < kBufferMibMin || buffer_mib > kBufferMibMax) {
    ExitUsage(component, absl::StrCat("--grpc_buffer_mib is ", buffer_mib, "; it must be in [",
                                      kBufferMibMin, ", ", kBufferMibMax, "]"));
  }
  InitLogging({.format = *format, .min_level = *level, .component = std::string(component)});
  return ServerOptions{.listen = absl::GetFlag(FLAGS_listen),
                       .metrics_listen = absl::GetFlag(FLAGS_metrics_listen),
                       .port_file = absl::GetFlag(FLAGS_port_file),
                       .drain_timeout = absl::GetFlag(FLAGS_drain_timeout),
                       .buffer_bytes_max = buffer_mib * limits::kMiB};
}

int ExitWith(const absl::Status& status) {
  if (status.ok()) return 0;
  KVTIER_LOG(ERROR) << status;
  return 1;
}

}  // namespace kvtier
