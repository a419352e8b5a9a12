#include "tests/testing/child_process.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "tests/testing/paths.h"

extern char** environ;

namespace kvtier {
namespace {

// Closes a descriptor.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int PollTimeoutMs(absl::Time deadline) {
  const absl::Duration left = deadline - absl::Now();
  // Rounded up, so that a wait never ends just before its deadline.
  return static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(left) + 1, 0, 60'000));
}

// Runs in the child between fork and exec: only async-signal-safe calls.
[[noreturn]] void ExecChild(pid_t parent, int output, const char* program, char* const* args,
                            char* const* environment) {
  // The child goes with the thread that started it, also when the test is killed.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // It went before the line above.
  if (output >= 0) {
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
  }
  execve(program, args, environment);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::string& program, const std::vector<std::string>& args,
    const ChildProcessOptions& options) {
  if (access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat(program, ": ", strerror(errno)));
  }
  std::vector<std::string> argument_texts = {program};
  argument_texts.insert(argument_texts.end(), args.begin(), args.end());
  std::vector<std::string> environment_texts;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const bool replaced =
        std::any_of(options.environment.begin(), options.environment.end(), [&](const auto& added) {
          return text.compare(0, added.first.size() + 1, added.first + "=") == 0;
        });
    if (!replaced) environment_texts.push_back(text);
  }
  for (const auto& [name, value] : options.environment) {
    environment_texts.push_back(absl::StrCat(name, "=", value));
  }
  const auto pointers = [](std::vector<std::string>& texts) {
    std::vector<char*> result;
    for (std::string& text : texts) result.push_back(text.data());
    result.push_back(nullptr);
    return result;
  };
  const std::vector<char*> argv = pointers(argument_texts);
  const std::vector<char*> envp = pointers(environment_texts);

  const Fd output(
      options.output_file.empty()
          ? -1
          : open(options.output_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", strerror(errno)));
  if (pid == 0) ExecChild(parent, output.get(), program.c_str(), argv.data(), envp.data());
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  KVTIER_CHECK_GE(pidfd, 0) << "pidfd_open: " << strerror(errno);
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, pidfd));
}

ChildProcess::~ChildProcess() {
  Kill();
  close(pidfd_);
}

bool ChildProcess::running() { return !Wait(absl::ZeroDuration()).ok(); }

void ChildProcess::Signal(int signal) {
  if (!ended_) kill(pid_, signal);
}

ExitStatus ChildProcess::Kill() {
  if (!ended_) {
    kill(pid_, SIGKILL);
    const absl::StatusOr<ExitStatus> status = Wait(absl::InfiniteDuration());
    KVTIER_CHECK_OK(status);
  }
  return exit_status_;
}

absl::StatusOr<ExitStatus> ChildProcess::Wait(absl::Duration timeout) {
  if (ended_) return exit_status_;
  const absl::Time deadline = absl::Now() + timeout;
  pollfd event = {.fd = pidfd_, .events = POLLIN, .revents = 0};
  while (poll(&event, 1, PollTimeoutMs(deadline)) <= 0) {
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " still runs"));
    }
  }
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0) KVTIER_CHECK_EQ(errno, EINTR);
  ended_ = true;
  if (WIFEXITED(status)) exit_status_.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) exit_status_.signal = WTERMSIG(status);
  return exit_status_;
}

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(
    const std::string& binary, const std::vector<std::string>& flags,
    const std::vector<std::pair<std::string, std::string>>& environment, absl::Duration timeout) {
  std::unique_ptr<ServerProcess> server(new ServerProcess());
  const std::string port_file = server->dir_.File("port");
  // Watched before the child can write it, so that its coming is never missed.
  const Fd watch(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  KVTIER_CHECK_GE(inotify_add_watch(watch.get(), server->dir_.path().c_str(), IN_MOVED_TO), 0)
      << strerror(errno);

  std::vector<std::string> args = {"--listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0",
                                   "--port_file=" + port_file};
  args.insert(args.end(), flags.begin(), flags.end());
  KVTIER_ASSIGN_OR_RETURN(server->process_,
                          ChildProcess::Start(ProgramPath(binary), args,
                                              {.environment = environment,
                                               .output_file = server->dir_.File("output")}));

  const absl::Time deadline = absl::Now() + timeout;
  std::string ports;
  while ((ports = ReadWhole(port_file)).empty()) {
    const bool running = server->process_->running();
    if (!running && !ReadWhole(port_file).empty()) continue;  // It came just before the end.
    if (!running || absl::Now() >= deadline) {
      return absl::UnavailableError(
          absl::StrCat(binary, running ? " is not ready:\n" : " ended:\n", server->output()));
    }
    // Wakes up for the file; looks for the end of the process ten times a second.
    pollfd event = {.fd = watch.get(), .events = POLLIN, .revents = 0};
    poll(&event, 1, std::min(100, PollTimeoutMs(deadline)));
    char events[4096];
    while (read(watch.get(), events, sizeof(events)) > 0) {
    }
  }
  const std::vector<std::string> fields = absl::StrSplit(ports, absl::ByAnyChar(" \n"));
  if (fields.size() < 2 || !absl::SimpleAtoi(fields[0], &server->port_) ||
      !absl::SimpleAtoi(fields[1], &server->metrics_port_)) {
    return absl::InternalError(absl::StrCat("port file of ", binary, ": ", ports));
  }
  return server;
}

absl::StatusOr<ExitStatus> ServerProcess::Stop(absl::Duration timeout) {
  process_->Signal(SIGTERM);
  return process_->Wait(timeout);
}

std::string ServerProcess::output() const { return ReadWhole(dir_.File("output")); }

absl::StatusOr<std::string> HttpGet(int port, const std::string& path) {
  const Fd connection(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval timeout = {.tv_sec = 20, .tv_usec = 0};
  setsockopt(connection.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  if (connect(connection.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
      0) {
    return absl::UnavailableError(absl::StrCat("port ", port, ": ", strerror(errno)));
  }
  const std::string request =
      absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
  if (send(connection.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return absl::UnavailableError(absl::StrCat("send: ", strerror(errno)));
  }
  std::string answer;
  char buffer[16384];
  ssize_t count = 0;
  while ((count = recv(connection.get(), buffer, sizeof(buffer), 0)) > 0) {
    answer.append(buffer, static_cast<size_t>(count));
  }
  const size_t body = answer.find("\r\n\r\n");
  if (answer.compare(0, 5, "HTTP/") != 0 || answer.find(" 200 ") > 12 ||
      body == std::string::npos) {
    return absl::UnavailableError(absl::StrCat("GET ", path, ": ", answer.substr(0, 200)));
  }
  return answer.substr(body + 4);
}

}  // namespace kvtier
