// An open RocksDB under users that come and go, and that can be opened anew under them: after a
// failed write RocksDB may refuse every other one, and its own Resume() does not do
// (docs/adr/0004-rocksdb-layout.md). While that fails too (the disk is still full), the database is
// open for reading: serving goes on. Private to the files that see RocksDB.
//
//   RocksDbHandle handle("db", opener);
//   KVTIER_RETURN_IF_ERROR(handle.Open(/*read_only=*/false));
//   const RocksDbHandle::Access access(&handle);
//   KVTIER_RETURN_IF_ERROR(access.writable());
//   absl::Status written = Rocks("write", [&] { return access->db->Write(...); });
//   if (!written.ok()) handle.MarkFailed(written);  // With no Access of this thread's own left,
//   ...                                             // before its next write:
//   KVTIER_RETURN_IF_ERROR(handle.EnsureWritable());
//
// Thread-safe.
#ifndef KVTIER_STORE_ROCKSDB_HANDLE_H_
#define KVTIER_STORE_ROCKSDB_HANDLE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
class Logger;
struct ColumnFamilyDescriptor;
struct DBOptions;
}  // namespace rocksdb

namespace kvtier {

// What RocksDB has to say goes to our log. Damage in its write-ahead log it reports nowhere else:
// "... dropping <n> bytes; Corruption: ...", a line for each place.
class RocksDbMessages {
 public:
  RocksDbMessages();

  // For DBOptions::info_log; may outlive this.
  const std::shared_ptr<rocksdb::Logger>& logger() const { return logger_; }
  // Places of the write-ahead log that could not be read.
  uint64_t log_damage() const { return *log_damage_; }

 private:
  const std::shared_ptr<std::atomic<uint64_t>> log_damage_;
  const std::shared_ptr<rocksdb::Logger> logger_;
};

// A database with its column families, closed with it.
struct OpenRocksDb {
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> families;  // As they were asked for.
  bool read_only = false;
  // Called before it is closed, when its background work has ended. May be null.
  std::function<void(rocksdb::DB&)> before_close;

  OpenRocksDb();
  ~OpenRocksDb();
  OpenRocksDb(const OpenRocksDb&) = delete;
  OpenRocksDb& operator=(const OpenRocksDb&) = delete;
};

// Opens `folder`. `is_damaged` (may be null) hears whether what is there cannot be opened for what
// it is: damaged, or a file is missing.
// FAILED_PRECONDITION: in use by another process, or twice in this one. Else as Rocks().
absl::StatusOr<std::unique_ptr<OpenRocksDb>> OpenRocks(
    const std::string& folder, const rocksdb::DBOptions& options,
    const std::vector<rocksdb::ColumnFamilyDescriptor>& families, bool read_only,
    bool* is_damaged = nullptr);

class RocksDbHandle {
 public:
  using Opener = std::function<absl::StatusOr<std::unique_ptr<OpenRocksDb>>(bool read_only)>;

  // `name` begins its messages. `open` is called by one thread at a time.
  RocksDbHandle(std::string name, Opener open) : name_(std::move(name)), open_(std::move(open)) {}

  // REQUIRES: called once, before any other method.
  absl::Status Open(bool read_only) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next EnsureWritable opens the database anew.
  void MarkFailed(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  // OK: every write so far succeeded, or the database has been opened anew since. Waits for the
  // users of the old one. REQUIRES: the caller's thread has no Access.
  absl::Status EnsureWritable() ABSL_LOCKS_EXCLUDED(mutex_);

  // Keeps the database from being closed. Waits while it is being opened anew.
  class Access {
   public:
    explicit Access(RocksDbHandle* handle);
    ~Access();
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

    // UNAVAILABLE: it could not be opened again.
    absl::Status status() const;
    // UNAVAILABLE: nor for reading only.
    absl::Status writable() const;
    // REQUIRES: status().ok().
    const OpenRocksDb& operator*() const { return *opened_; }
    const OpenRocksDb* operator->() const { return opened_; }

   private:
    RocksDbHandle* const handle_;
    OpenRocksDb* opened_;
  };

 private:
  const std::string name_;
  const Opener open_;

  Mutex mutex_;
  CondVar changed_;
  std::unique_ptr<OpenRocksDb> opened_ ABSL_GUARDED_BY(mutex_);  // Null only while it cannot be.
  int users_ ABSL_GUARDED_BY(mutex_) = 0;                        // Accesses that use opened_.
  bool reopening_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_failed_ ABSL_GUARDED_BY(mutex_) = false;  // A write has, since the last (re)open.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_HANDLE_H_
