// A program that a suite measures as a process of its own: the kvtier-store beside kvtier-bench, or
// a Redis. It is found through what it writes, and dies with us.
#ifndef KVTIER_BENCH_STORE_PROCESS_H_
#define KVTIER_BENCH_STORE_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvtier::bench {

// An empty folder that goes away with everything in it: with the object, or, if its process was
// killed, when another one is made beside it. A lock on the folder, which ends with the process,
// tells the two apart.
class ScratchFolder {
 public:
  // Inside `parent`; empty: the system's temporary folder. UNAVAILABLE naming it.
  static absl::StatusOr<std::unique_ptr<ScratchFolder>> Create(const std::string& parent);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  ScratchFolder(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}
  const std::string path_;
  const int lock_;  // A descriptor of the folder, flock(2)ed.
};

// Bytes that the files below `folder` take on the disk. Files that go meanwhile do not count.
uint64_t DiskBytes(const std::string& folder);

// A child process. Not thread-safe, but for the figures.
class Process {
 public:
  // `words`: the program (looked up in PATH) and its arguments. Its output goes to `output_file`.
  // NOT_FOUND: no such program. UNAVAILABLE: it cannot be started.
  static absl::StatusOr<std::unique_ptr<Process>> Start(
      const std::vector<std::string>& words, const std::string& output_file,
      const std::vector<std::pair<std::string, std::string>>& environment = {});
  // SIGTERM, and SIGKILL after a while.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  bool has_ended();
  // SIGKILL; returns when it is gone.
  void Kill();

  // What the kernel counts for it. UNAVAILABLE when it is gone, or does not say.
  // User and system time of all its threads so far.
  absl::StatusOr<double> CpuSeconds() const;
  // Bytes that it has had read from and written to a disk so far. A file system that is none
  // (tmpfs) counts nothing.
  absl::StatusOr<uint64_t> ReadBytes() const;
  absl::StatusOr<uint64_t> WrittenBytes() const;
  // Resident now, and at most so far.
  absl::StatusOr<uint64_t> ResidentBytes() const;
  absl::StatusOr<uint64_t> PeakResidentBytes() const;

 private:
  explicit Process(pid_t pid) : pid_(pid) {}
  absl::StatusOr<uint64_t> Field(const char* file, const char* field) const;
  const pid_t pid_;
  bool has_ended_ = false;
};

class StoreProcess {
 public:
  // Runs the kvtier-store beside this program, on a free port of loopback, with `flags`. Returns
  // when it serves. UNAVAILABLE with the end of its output if it does not.
  static absl::StatusOr<std::unique_ptr<StoreProcess>> Start(const std::vector<std::string>& flags);

  std::string address() const;
  int metrics_port() const { return metrics_port_; }
  Process& process() { return *process_; }

 private:
  StoreProcess() = default;
  std::unique_ptr<ScratchFolder> scratch_;  // Port file and output; goes after the process.
  std::unique_ptr<Process> process_;
  int port_ = 0;
  int metrics_port_ = 0;
};

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_STORE_PROCESS_H_
