// RocksDB in our own terms, and the only place that sees it: column families of segments and of
// records, band files that come in whole and go out whole, and recovery from failed writes. Its
// statuses and exceptions are mapped here:
//   RESOURCE_EXHAUSTED  the disk is full, or memory
//   DATA_LOSS           RocksDB found damage
//   UNAVAILABLE         anything else that a file system does to one
//
// A write that failed may still come back from RocksDB's log after a crash, and after one RocksDB
// may refuse every further write. So the write that follows it first opens the database anew and
// undoes what had failed. If that fails too (the disk is still full), the database is open for
// reading: serving goes on.
//
// Thread-safe. Reads and writes of different threads run at the same time; WriteRecords are one
// after the other.
#ifndef KVTIER_STORE_ROCKSDB_DATABASE_H_
#define KVTIER_STORE_ROCKSDB_DATABASE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/bytes.h"
#include "base/mutex.h"

namespace rocksdb {
class Env;
}

namespace kvtier {

class RocksDbDatabase {
 public:
  enum class Family { kSegments, kObjects, kResidency, kAttributes };

  enum class Mode { kReadWrite, kReadOnly };

  // Two fifths of it are for unflushed records, one for cached blocks, two for open files. More
  // than the most brings nothing.
  static constexpr uint64_t kMemoryBytesMin = uint64_t{1} << 20;
  static constexpr uint64_t kMemoryBytesMax = uint64_t{40} << 20;
  // What an open file of the usual size takes for its index (rocksdb_database_test measures it).
  static constexpr uint64_t kOpenFileBytes = uint64_t{16} << 10;

  // `env` (may be null: the default) outlives the database. Families that an older build did not
  // have are made, or, kReadOnly, are empty. kReadOnly changes nothing in the folder; whatever
  // would write is then FAILED_PRECONDITION.
  // FAILED_PRECONDITION: in use by another process, or twice in this one.
  // `memory_bytes`: what memory_bytes() may be, at least kMemoryBytesMin.
  static absl::StatusOr<std::unique_ptr<RocksDbDatabase>> Open(
      std::string folder, Mode mode, rocksdb::Env* env, uint64_t memory_bytes = kMemoryBytesMax);
  ~RocksDbDatabase();

  // Places of the write-ahead log that could not be read when the database was opened. A write that
  // was cut off by a loss of power looks the same as one that has rotted.
  uint64_t log_damage() const;

  // --- Records: small, through the write-ahead log, synced.
  struct RecordChange {
    Family family;
    std::string key;
    std::optional<std::string> value;  // Nothing: removes the record.
  };
  // All or nothing, durable once it returns OK. On an error the records are as they were for this
  // process; a crash may show either.
  absl::Status WriteRecords(std::span<const RecordChange> changes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Clears up after a write that failed. After OK nothing is in doubt, and bytes that only the
  // failed write named may go.
  absl::Status EnsureWritable() ABSL_LOCKS_EXCLUDED(mutex_);
  // Every record of a family, in key order. DATA_LOSS: RocksDB found damage; what came before it
  // has been visited.
  absl::Status VisitRecords(Family family,
                            absl::FunctionRef<void(absl::string_view, absl::string_view)> visit)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Segments: written to files of their own, outside the database, then taken in.
  struct Part {
    std::string key;
    ByteSpan bytes;
  };
  // `parts` ascend by key and are not empty. Leaves no file unless it is whole and synced.
  absl::Status WriteSegmentFile(const std::string& file, std::span<const Part> parts)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Moves the files in, all or none, durably.
  absl::Status IngestSegmentFiles(const std::vector<std::string>& files)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Copies the value into the front of `out`; returns its size. NOT_FOUND; DATA_LOSS when its
  // file is gone, or it is larger than `out`. RocksDB's checksums of it are not verified.
  absl::StatusOr<size_t> ReadPart(const std::string& key, MutableByteSpan out)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Removes all keys in [begin, end), whole files at once where they lie inside.
  absl::Status RemoveSegments(const std::string& begin, const std::string& end)
      ABSL_LOCKS_EXCLUDED(mutex_);
  struct SegmentFile {
    std::string first_key, last_key;
  };
  absl::StatusOr<std::vector<SegmentFile>> ListSegmentFiles() ABSL_LOCKS_EXCLUDED(mutex_);

  // Memory that RocksDB takes for what outlives a call, now: tables of unflushed records, cached
  // blocks of records, indexes of open files. 0 while the database cannot be opened.
  uint64_t memory_bytes() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Handle;  // An open rocksdb::DB with its column families.
  class Access;   // Keeps the handle from being closed.
  class Messages;

  RocksDbDatabase(std::string folder, Mode mode, rocksdb::Env* env, uint64_t memory_bytes);

  absl::StatusOr<std::unique_ptr<Handle>> OpenHandle(bool read_only);
  bool HasDirectWrites();
  absl::Status Reopen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_);
  absl::Status EnsureWritableLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_);
  absl::Status WriteBatch(std::span<const RecordChange> changes);
  // What undoes them: the present values.
  absl::StatusOr<std::vector<RecordChange>> Inverse(std::span<const RecordChange> changes);
  void MarkFailed(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status CheckMode() const;

  const std::string folder_;
  const Mode mode_;
  rocksdb::Env* const env_;
  const uint64_t memory_bytes_;
  const std::shared_ptr<Messages> messages_;
  bool direct_writes_ = false;  // Constant after Open.

  // Held across disk writes, the one lock that is: what it orders are those writes. Readers never
  // take it. Before mutex_.
  Mutex write_mutex_;
  std::vector<RecordChange> undo_ ABSL_GUARDED_BY(write_mutex_);

  Mutex mutex_;
  CondVar changed_;
  std::unique_ptr<Handle> handle_ ABSL_GUARDED_BY(mutex_);  // Null only while reopening failed.
  int users_ ABSL_GUARDED_BY(mutex_) = 0;                   // Accesses that use the handle.
  bool reopening_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_failed_ ABSL_GUARDED_BY(mutex_) = false;  // A write did since the last (re)open.
};

// Files beside the database, through the same Env.
namespace rocksdb_files {
absl::StatusOr<bool> Exists(rocksdb::Env* env, const std::string& path);
absl::StatusOr<std::string> Read(rocksdb::Env* env, const std::string& path);
// Whole and synced, or not there at all.
absl::Status WriteAtomically(rocksdb::Env* env, const std::string& folder, const std::string& name,
                             absl::string_view content);
// Names of what is in it, in no order.
absl::StatusOr<std::vector<std::string>> ListFolder(rocksdb::Env* env, const std::string& folder);
// Creates the folder and those above it, as far as they are missing, durably: a folder is a name in
// its parent, and without an fsync of that one a loss of power takes it with all that is in it.
absl::Status CreateFolder(rocksdb::Env* env, const std::string& folder);
// Creates the folder if it is missing; removes every file in it.
absl::Status EmptyFolder(rocksdb::Env* env, const std::string& folder);
// Fine if it is not there.
absl::Status Remove(rocksdb::Env* env, const std::string& path);
}  // namespace rocksdb_files

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_DATABASE_H_
