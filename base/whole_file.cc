#include "base/whole_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace kvtier {
namespace {

// One write: Linux moves no more than 2 GiB at once.
constexpr size_t kWriteBytesMax = size_t{1} << 30;

// The folder that the entry `path` lies in.
std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// 0, or what the system said.
int SyncFolder(const std::string& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return errno;
  const int error = fsync(descriptor) == 0 ? 0 : errno;
  close(descriptor);
  return error;
}

}  // namespace

absl::Status WholeFile::Refused(int error) const {
  return absl::UnavailableError(absl::StrCat(path_, ": cannot be written: ", std::strerror(error)));
}

absl::StatusOr<WholeFile> WholeFile::Create(const std::string& path) {
  static std::atomic<uint64_t> files{0};
  for (;;) {
    std::string part = absl::StrCat(path, ".", getpid(), "-", files.fetch_add(1), ".part");
    const int descriptor = open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                                S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH);
    if (descriptor >= 0) return WholeFile(path, std::move(part), descriptor);
    // A killed process with our number left one: the next name.
    if (errno != EEXIST && errno != EINTR) return WholeFile(path, "", -1).Refused(errno);
  }
}

WholeFile::~WholeFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(part_.c_str());
}

absl::Status WholeFile::Append(ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        write(descriptor_, bytes.data(), std::min(bytes.size(), kWriteBytesMax));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Refused(errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status WholeFile::Commit() {
  KVTIER_CHECK_GE(descriptor_, 0) << "committed twice";
  // Data before the name, or a power loss could leave the name of an empty file.
  if (fsync(descriptor_) != 0) return Refused(errno);
  if (std::rename(part_.c_str(), path_.c_str()) != 0) return Refused(errno);
  const int closed = close(std::exchange(descriptor_, -1)) == 0 ? 0 : errno;
  const int synced = SyncFolder(FolderOf(path_));
  if (closed != 0 || synced != 0) return Refused(closed != 0 ? closed : synced);
  return absl::OkStatus();
}

}  // namespace kvtier
