// Who may use a store's folder: one writer, or any number of readers. An flock(2) on the file LOCK,
// so it ends with the process however that ends, and with the object. Thread-safe.
#ifndef KVTIER_STORE_FOLDER_LOCK_H_
#define KVTIER_STORE_FOLDER_LOCK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace kvtier {

class FolderLock {
 public:
  static constexpr char kFileName[] = "LOCK";
  // kShared writes nothing, and is fine without a file: nobody has ever written there.
  enum class Kind { kSole, kShared };

  // FAILED_PRECONDITION: somebody, in this process or another, holds it. UNAVAILABLE: the file
  // cannot be opened.
  static absl::StatusOr<std::unique_ptr<FolderLock>> Take(const std::string& folder, Kind kind);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  explicit FolderLock(int file) : file_(file) {}
  const int file_;  // -1: there is no file.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_FOLDER_LOCK_H_
