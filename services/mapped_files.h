// Memory files of a store, mapped read-only into this process: each once, however many leases were
// handed it, because page tables cost as much as reading does (docs/adr/0011-memory-files.md).
#ifndef KVTIER_SERVICES_MAPPED_FILES_H_
#define KVTIER_SERVICES_MAPPED_FILES_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/bytes.h"
#include "base/mutex.h"

namespace kvtier {

// One mapping; it stays readable for as long as this lives, whatever the store does. Thread-safe.
class MappedFile {
 public:
  explicit MappedFile(ByteSpan mapping) : mapping_(mapping) {}
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  ByteSpan bytes() const { return mapping_; }
  // Bytes [begin, end), whose pages are in the page table on return, so that reading them is not
  // interrupted by a fault every few pages. REQUIRES: begin <= end <= bytes().size().
  ByteSpan Prepared(uint64_t begin, uint64_t end) const;

 private:
  const ByteSpan mapping_;
};

// Thread-safe.
class MappedFiles {
 public:
  // The file behind `fd`, which may be closed afterwards. It must be exactly `bytes` long and
  // sealed so that it stays so and nobody writes: reading past the end of a file that shrinks would
  // kill us.
  //   DATA_LOSS           it is not
  //   RESOURCE_EXHAUSTED  no address space, or too many mappings
  absl::StatusOr<std::shared_ptr<const MappedFile>> Map(int fd, uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Of memory files they are never used again before the machine restarts (64 bits, counted up).
  using FileId = std::pair<dev_t, ino_t>;

  Mutex mutex_;
  std::map<FileId, std::weak_ptr<const MappedFile>> files_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_MAPPED_FILES_H_
