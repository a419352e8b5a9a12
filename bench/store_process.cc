#include "bench/store_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

extern char** environ;

namespace kvtier::bench {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kStopTimeout = absl::Seconds(30);
constexpr absl::Duration kPollInterval = absl::Milliseconds(10);

std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

constexpr char kScratchPrefix[] = "kvtier-bench-";

// The folder, locked. Nothing if somebody else has it, or it is not there.
std::optional<int> LockFolder(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  struct stat locked = {}, there = {};
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &locked) != 0 ||
      lstat(path.c_str(), &there) != 0 || locked.st_ino != there.st_ino) {
    close(fd);
    return std::nullopt;
  }
  return fd;
}

// Folders of processes that were killed.
void RemoveStaleFolders(const std::filesystem::path& base) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(base, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (!entry->path().filename().string().starts_with(kScratchPrefix)) continue;
    const std::optional<int> lock = LockFolder(entry->path());
    if (!lock.has_value()) continue;
    std::error_code not_ours;
    std::filesystem::remove_all(entry->path(), not_ours);
    close(*lock);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ScratchFolder>> ScratchFolder::Create(const std::string& parent) {
  std::error_code error;
  std::filesystem::path base = parent;
  if (parent.empty()) base = std::filesystem::temp_directory_path(error);
  RemoveStaleFolders(base);
  // Another process that does this may take a folder for a stale one, before it is locked.
  constexpr int kAttempts = 8;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string path = (base / (std::string(kScratchPrefix) + "XXXXXX")).string();
    if (mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("no folder can be made in ", base.string(), ": ", strerror(errno)));
    }
    if (const std::optional<int> lock = LockFolder(path); lock.has_value()) {
      return std::unique_ptr<ScratchFolder>(new ScratchFolder(std::move(path), *lock));
    }
    std::filesystem::remove(path, error);
  }
  return absl::UnavailableError(absl::StrCat("no folder in ", base.string(), " can be locked"));
}

ScratchFolder::~ScratchFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  if (error) KVTIER_LOG(WARNING) << path_ << " stays: " << error.message();
  close(lock_);
}

uint64_t DiskBytes(const std::string& folder) {
  uint64_t bytes = 0;
  std::error_code error;
  std::filesystem::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::recursive_directory_iterator();
       entry.increment(error)) {
    struct stat status = {};
    // A file with two names (staged and taken in) counts half for each.
    if (lstat(entry->path().c_str(), &status) == 0 && S_ISREG(status.st_mode)) {
      bytes +=
          static_cast<uint64_t>(status.st_blocks) * 512 / std::max<nlink_t>(1, status.st_nlink);
    }
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<Process>> Process::Start(
    const std::vector<std::string>& words, const std::string& output_file,
    const std::vector<std::pair<std::string, std::string>>& environment) {
  std::vector<std::string> texts = words;
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
  for (const auto& [name, value] : environment) {
    std::erase_if(variables, [&](const std::string& text) { return text.starts_with(name + "="); });
    variables.push_back(absl::StrCat(name, "=", value));
  }
  const auto pointers = [](std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (std::string& text : strings) result.push_back(text.data());
    result.push_back(nullptr);
    return result;
  };
  const std::vector<char*> argv = pointers(texts);
  const std::vector<char*> envp = pointers(variables);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_file.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t pid = 0;
  const int error = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) return absl::NotFoundError(absl::StrCat(words[0], " is not installed"));
  if (error != 0) return absl::UnavailableError(absl::StrCat(words[0], ": ", strerror(error)));
  return std::unique_ptr<Process>(new Process(pid));
}

bool Process::has_ended() {
  if (!has_ended_) has_ended_ = waitpid(pid_, nullptr, WNOHANG) == pid_;
  return has_ended_;
}

Process::~Process() {
  if (has_ended()) return;
  kill(pid_, SIGTERM);
  const absl::Time deadline = absl::Now() + kStopTimeout;
  while (!has_ended()) {
    if (absl::Now() > deadline) kill(pid_, SIGKILL);
    absl::SleepFor(kPollInterval);
  }
}

void Process::Kill() {
  if (has_ended()) return;
  kill(pid_, SIGKILL);
  has_ended_ = waitpid(pid_, nullptr, 0) == pid_;
}

absl::StatusOr<double> Process::CpuSeconds() const {
  clockid_t clock = 0;
  timespec spent = {};
  if (const int error = clock_getcpuclockid(pid_, &clock); error != 0) {
    return absl::UnavailableError(
        absl::StrCat("processor time of process ", pid_, ": ", strerror(error)));
  }
  if (clock_gettime(clock, &spent) != 0) {
    return absl::UnavailableError(
        absl::StrCat("processor time of process ", pid_, ": ", strerror(errno)));
  }
  return static_cast<double>(spent.tv_sec) + 1e-9 * static_cast<double>(spent.tv_nsec);
}

// The number behind `field` in a file of lines "field value".
absl::StatusOr<uint64_t> Process::Field(const char* file, const char* field) const {
  const std::string path = absl::StrCat("/proc/", pid_, "/", file);
  std::ifstream lines(path);
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == field) return value;
  }
  return absl::UnavailableError(absl::StrCat(path, " has no ", field));
}

absl::StatusOr<uint64_t> Process::ReadBytes() const { return Field("io", "read_bytes:"); }
absl::StatusOr<uint64_t> Process::WrittenBytes() const { return Field("io", "write_bytes:"); }
absl::StatusOr<uint64_t> Process::ResidentBytes() const {
  KVTIER_ASSIGN_OR_RETURN(const uint64_t kib, Field("status", "VmRSS:"));
  return kib * 1024;
}
absl::StatusOr<uint64_t> Process::PeakResidentBytes() const {
  KVTIER_ASSIGN_OR_RETURN(const uint64_t kib, Field("status", "VmHWM:"));
  return kib * 1024;
}

absl::StatusOr<std::unique_ptr<StoreProcess>> StoreProcess::Start(
    const std::vector<std::string>& flags) {
  std::unique_ptr<StoreProcess> store(new StoreProcess());
  KVTIER_ASSIGN_OR_RETURN(store->scratch_, ScratchFolder::Create(""));
  std::error_code error;
  const std::filesystem::path own = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string port_file = store->scratch_->path() + "/port";
  const std::string output = store->scratch_->path() + "/output";
  std::vector<std::string> words = {(own.parent_path() / "kvtier-store").string(),
                                    "--listen=127.0.0.1:0", "--metrics_listen=127.0.0.1:0",
                                    "--port_file=" + port_file};
  words.insert(words.end(), flags.begin(), flags.end());
  KVTIER_ASSIGN_OR_RETURN(store->process_, Process::Start(words, output));
  const absl::Time deadline = absl::Now() + kStartTimeout;
  for (;;) {
    std::istringstream ports(ReadWhole(port_file));
    if (ports >> store->port_ >> store->metrics_port_) return store;
    if (store->process_->has_ended() || absl::Now() > deadline) {
      return absl::UnavailableError(
          absl::StrCat(words[0], " does not serve:\n", ReadWhole(output)));
    }
    absl::SleepFor(kPollInterval);
  }
}

std::string StoreProcess::address() const { return absl::StrCat("127.0.0.1:", port_); }

}  // namespace kvtier::bench
