// The database of objects, RocksDB in our own terms: column families of segments and of records,
// band files that come in whole and go out whole, and recovery from failed writes. Its statuses and
// exceptions are mapped here:
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
#include "store/rocksdb_handle.h"

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

  struct Options {
    Mode mode = Mode::kReadWrite;
    rocksdb::Env* env = nullptr;  // Outlives the database. Null: the default.
    // What memory_bytes() may be, at least kMemoryBytesMin.
    uint64_t memory_bytes = kMemoryBytesMax;
    // What its files other than segments and lists of files may take on the disk, beside the
    // records themselves; 0: kFilesBytesMax. At least kFilesBytesMin.
    uint64_t files_bytes = 0;
    // Of the list of files (RocksDB's MANIFEST) before a new one begins; for a moment there are
    // two. Should be twice kListBytesPerFile for each file that is expected. From one time on, each
    // ingestion writes the list of all files. 0: kListBytesDefault. At least kListBytesMin.
    uint64_t list_bytes = 0;
    // Segments are read past the page cache, where the file system can (not with kReadOnly, which
    // cannot try).
    bool direct_reads = true;
  };
  static constexpr uint64_t kFilesBytesMin = uint64_t{1} << 20;
  static constexpr uint64_t kFilesBytesMax = uint64_t{192} << 20;
  static constexpr uint64_t kListBytesPerFile = 160;
  static constexpr uint64_t kListBytesMin = uint64_t{64} << 10;
  static constexpr uint64_t kListBytesDefault = uint64_t{256} << 20;

  // Families that an older build did not have are made, or, kReadOnly, are empty. kReadOnly changes
  // nothing in the folder; whatever would write is then FAILED_PRECONDITION.
  // FAILED_PRECONDITION: in use by another process, or twice in this one.
  static absl::StatusOr<std::unique_ptr<RocksDbDatabase>> Open(std::string folder,
                                                               const Options& options);
  ~RocksDbDatabase();

  // Places of the write-ahead log that could not be read when the database was opened. A write that
  // was cut off by a loss of power looks the same as one that has rotted.
  uint64_t log_damage() const { return messages_.log_damage(); }

  // --- Records: small, through the write-ahead log, synced.
  struct RecordChange {
    Family family;
    std::string key;
    std::optional<std::string> value;  // Nothing: removes the record.
  };
  // All or nothing, durable once it returns OK. On an error the records are as they were for this
  // process; a crash may show either.
  absl::Status WriteRecords(std::span<const RecordChange> changes)
      ABSL_LOCKS_EXCLUDED(write_mutex_);
  // Clears up after a write that failed. After OK nothing is in doubt, and bytes that only the
  // failed write named may go.
  absl::Status EnsureWritable() ABSL_LOCKS_EXCLUDED(write_mutex_);
  // Every record of a family, in key order. DATA_LOSS: RocksDB found damage; what came before it
  // has been visited.
  absl::Status VisitRecords(Family family,
                            absl::FunctionRef<void(absl::string_view, absl::string_view)> visit);

  // --- Segments: written to files of their own, outside the database, then taken in.
  struct Part {
    std::string key;
    ByteSpan bytes;
  };
  // `parts` ascend by key and are not empty. Leaves no file unless it is whole and synced.
  absl::Status WriteSegmentFile(const std::string& file, std::span<const Part> parts);
  // Moves the files in, all or none, durably.
  absl::Status IngestSegmentFiles(const std::vector<std::string>& files)
      ABSL_LOCKS_EXCLUDED(write_mutex_);
  // Copies the value into the front of `out`; returns its size. NOT_FOUND; DATA_LOSS when its
  // file is gone, or it is larger than `out`. RocksDB's checksums of it are not verified.
  absl::StatusOr<size_t> ReadPart(const std::string& key, MutableByteSpan out);
  // Removes all keys in [begin, end), whole files at once where they lie inside.
  absl::Status RemoveSegments(const std::string& begin, const std::string& end)
      ABSL_LOCKS_EXCLUDED(write_mutex_);
  struct SegmentFile {
    std::string first_key, last_key;
  };
  absl::StatusOr<std::vector<SegmentFile>> ListSegmentFiles();

  // Memory that RocksDB takes for what outlives a call, now: tables of unflushed records, cached
  // blocks of records, indexes of open files. 0 while the database cannot be opened.
  uint64_t memory_bytes();

 private:
  RocksDbDatabase(std::string folder, const Options& options);

  // Of all families together, before they are flushed.
  uint64_t UnflushedBytesMax() const;
  absl::StatusOr<std::unique_ptr<OpenRocksDb>> OpenFolder(bool read_only) const;
  // RocksDB's own work has failed, and it refuses every write with that error, which may be long
  // gone: a disk that was full.
  bool HasBackgroundError();
  absl::Status EnsureWritableLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_);
  absl::Status WriteBatch(std::span<const RecordChange> changes);
  // What undoes them: the present values.
  absl::StatusOr<std::vector<RecordChange>> Inverse(std::span<const RecordChange> changes);

  absl::Status CheckMode() const;

  const std::string folder_;
  const Options options_;
  const RocksDbMessages messages_;
  bool has_direct_io_ = false;  // Constant after Open.
  RocksDbHandle handle_;

  // Held across disk writes, the one lock that is: what it orders are those writes. Readers never
  // take it.
  Mutex write_mutex_;
  std::vector<RecordChange> undo_ ABSL_GUARDED_BY(write_mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_DATABASE_H_
