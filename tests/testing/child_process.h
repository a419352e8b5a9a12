// A product binary run as a child process: started with flags, found through its port file, killed
// as hard as a crash. Dies with the test, however the test ends.
//
//   KVTIER_ASSERT_OK_AND_ASSIGN(auto store, ServerProcess::Start("kvtier-store", {"--data_dir=" +
//   d})); StoreClient client(MakeChannel(store->address())); store->Kill(); // SIGKILL, and waits
//   for the end
//
// Not thread-safe.
#ifndef KVTIER_TESTS_TESTING_CHILD_PROCESS_H_
#define KVTIER_TESTS_TESTING_CHILD_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {

// How a process ended. Exactly one of the two is meaningful.
struct ExitStatus {
  int exit_code = -1;  // -1: ended by a signal.
  int signal = 0;      // 0: exited.
};

struct ChildProcessOptions {
  std::vector<std::pair<std::string, std::string>> environment = {};  // Added to ours.
  std::string output_file = "";  // stdout and stderr go there; empty: to ours.
};

// Any program.
class ChildProcess {
 public:
  // `program` is a path. NOT_FOUND if it is not there.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(
      const std::string& program, const std::vector<std::string>& args,
      const ChildProcessOptions& options = {});
  // Kills it if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  bool running();
  void Signal(int signal);
  // SIGKILL, and waits for the end. Fine if it ended before.
  ExitStatus Kill();
  // DEADLINE_EXCEEDED if it still runs after `timeout` (and goes on running).
  absl::StatusOr<ExitStatus> Wait(absl::Duration timeout);

 private:
  explicit ChildProcess(pid_t pid, int pidfd) : pid_(pid), pidfd_(pidfd) {}
  const pid_t pid_;
  const int pidfd_;  // Readable once the process has ended.
  bool ended_ = false;
  ExitStatus exit_status_;
};

// A server of ours (services/server.h): started on free ports, ready when Start returns.
class ServerProcess {
 public:
  // Runs ProgramPath(binary) with --listen and --metrics_listen on 127.0.0.1:0, --port_file,
  // and `flags` after them. UNAVAILABLE with the end of its output if it ends, or says nothing in
  // time.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const std::string& binary, const std::vector<std::string>& flags,
      const std::vector<std::pair<std::string, std::string>>& environment = {},
      absl::Duration timeout = absl::Seconds(50));

  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  ChildProcess& process() { return *process_; }
  ExitStatus Kill() { return process_->Kill(); }
  // SIGTERM, and waits for the end.
  absl::StatusOr<ExitStatus> Stop(absl::Duration timeout = absl::Seconds(30));
  // stdout and stderr so far.
  std::string output() const;

 private:
  ServerProcess() = default;
  TempDir dir_;  // Holds the port file and the output.
  std::unique_ptr<ChildProcess> process_;
  int port_ = 0;
  int metrics_port_ = 0;
};

// GET of `path` ("/metrics") from a local port: the body. UNAVAILABLE if there is no answer of 200.
absl::StatusOr<std::string> HttpGet(int port, const std::string& path);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_CHILD_PROCESS_H_
