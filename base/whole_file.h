// A new file that others see whole or not at all, also after a power loss: its bytes go to a name
// of their own beside it, are synced, and take the path by a rename, which is synced too.
//
//   KVTIER_ASSIGN_OR_RETURN(WholeFile file, WholeFile::Create(path));
//   KVTIER_RETURN_IF_ERROR(file.Append(bytes));
//   return file.Commit();
//
// Any number of writers, also in several processes, may write the same path at once: the last
// Commit stays. One writer is not thread-safe. Errors: UNAVAILABLE naming the path and what the
// system said; `path` is then as it was, save where Commit says otherwise.
#ifndef KVTIER_BASE_WHOLE_FILE_H_
#define KVTIER_BASE_WHOLE_FILE_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/bytes.h"

namespace kvtier {

class WholeFile {
 public:
  // Made as the process's umask says. The folder of `path` must be there.
  static absl::StatusOr<WholeFile> Create(const std::string& path);
  // Removes what was not committed. A killed process leaves `path`.<process>-<number>.part behind.
  ~WholeFile();
  WholeFile(WholeFile&& other) noexcept
      : path_(std::move(other.path_)),
        part_(std::move(other.part_)),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  WholeFile& operator=(WholeFile&&) = delete;
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;

  // After an error only destroy it.
  absl::Status Append(ByteSpan bytes);
  // Takes the place of what is at the path, if it is no folder. When the folder cannot be synced
  // the error comes although the new file is there: which of the two a power loss leaves is open.
  // REQUIRES: not called before.
  absl::Status Commit();

 private:
  WholeFile(std::string path, std::string part, int descriptor)
      : path_(std::move(path)), part_(std::move(part)), descriptor_(descriptor) {}

  absl::Status Refused(int error) const;

  std::string path_;
  std::string part_;     // Where the bytes are until Commit.
  int descriptor_ = -1;  // -1: committed, or moved from.
};

}  // namespace kvtier

#endif  // KVTIER_BASE_WHOLE_FILE_H_
