#include "store/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace kvtier {

absl::StatusOr<std::unique_ptr<FolderLock>> FolderLock::Take(const std::string& folder, Kind kind) {
  const std::string path = absl::StrCat(folder, "/", kFileName);
  const bool is_sole = kind == Kind::kSole;
  const int file = open(path.c_str(), O_CLOEXEC | (is_sole ? O_RDWR | O_CREAT : O_RDONLY), 0644);
  if (file < 0 && errno == ENOENT && !is_sole) {
    return std::unique_ptr<FolderLock>(new FolderLock(-1));
  }
  const auto error = [&](absl::string_view what) {
    return absl::StrCat(path, ": ", what, std::generic_category().message(errno));
  };
  if (file < 0) return absl::UnavailableError(error(""));
  std::unique_ptr<FolderLock> lock(new FolderLock(file));
  if (flock(file, LOCK_NB | (is_sole ? LOCK_EX : LOCK_SH)) == 0) return lock;
  return errno == EWOULDBLOCK
             ? absl::FailedPreconditionError(error("the store is in use by another process: "))
             : absl::UnavailableError(error(""));
}

FolderLock::~FolderLock() {
  if (file_ >= 0) close(file_);
}

}  // namespace kvtier
