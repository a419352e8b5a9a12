#include "store/rocksdb_database.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "rocksdb/cache.h"
#include "rocksdb/convenience.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/metadata.h"
#include "rocksdb/options.h"
#include "rocksdb/sst_file_writer.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"
#include "store/rocksdb_status.h"

namespace kvtier {
namespace {

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }
absl::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

// All families together. A tenth of the whole stays free for what is being flushed.
uint64_t WriteBufferBytes(uint64_t memory_bytes) { return memory_bytes * 3 / 10; }

rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env, uint64_t memory_bytes) {
  rocksdb::DBOptions options;
  options.env = env;
  // A damaged record of the log costs itself, not all that come after it. Each of ours stands for
  // itself, and was synced before it was acknowledged, so none hides behind a torn one.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A file per band: all of them open at once would be more files than a process may have.
  options.max_open_files = static_cast<int>(memory_bytes * 2 / 5 / RocksDbDatabase::kOpenFileBytes);
  options.db_write_buffer_size = WriteBufferBytes(memory_bytes);
  options.max_total_wal_size = 64 << 20;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // We recover from failed writes ourselves.
  options.max_bgerror_resume_count = 0;
  return options;
}

// Whole files come in by ingestion and go out by DeleteFilesInRange: nothing to compact, nothing to
// compress (bf16 does not), no filter (a key that the manifest names is there).
rocksdb::ColumnFamilyOptions MakeSegmentsOptions() {
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;
  table.checksum = rocksdb::kXXH3;  // The packaged build computes CRC32C in software.
  table.format_version = 5;
  rocksdb::ColumnFamilyOptions options;
  options.disable_auto_compactions = true;
  options.compression = rocksdb::kNoCompression;
  options.bottommost_compression = rocksdb::kNoCompression;
  options.write_buffer_size = 1 << 20;  // Holds the rare range tombstone and nothing else.
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// Direct writes are several times faster than filling the page cache and syncing it, and what was
// just written is in host memory anyway.
rocksdb::EnvOptions MakeFileOptions(bool direct_writes) {
  rocksdb::EnvOptions options;
  options.use_direct_writes = direct_writes;
  options.writable_file_max_buffer_size = 4 << 20;
  return options;
}

// `cache`: of all families together.
rocksdb::ColumnFamilyOptions MakeRecordsOptions(const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  rocksdb::ColumnFamilyOptions options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 8 << 20;
  return options;
}

}  // namespace

// What RocksDB has to say goes to our log. Damage in its write-ahead log it reports nowhere else:
// "... dropping <n> bytes; Corruption: ...", a line for each place.
class RocksDbDatabase::Messages final : public rocksdb::Logger {
 public:
  Messages() : rocksdb::Logger(rocksdb::WARN_LEVEL) {}

  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char text[512];
    std::vsnprintf(text, sizeof(text), format, arguments);
    if (absl::StrContains(text, ": dropping ")) ++log_damage_;
    KVTIER_LOG(WARNING) << "RocksDB: " << text;
  }
  size_t GetLogFileSize() const override { return 0; }
  uint64_t log_damage() const { return log_damage_; }

 private:
  std::atomic<uint64_t> log_damage_{0};
};

struct RocksDbDatabase::Handle {
  std::unique_ptr<rocksdb::DB> db;
  // The default one, then as in Family, without those at the end that the folder does not have.
  std::vector<rocksdb::ColumnFamilyHandle*> families;
  bool read_only = false;

  // Null only if read_only: a store of an older format lacks the latest families.
  rocksdb::ColumnFamilyHandle* family(Family of) const {
    const size_t index = 1 + static_cast<size_t>(of);
    return index < families.size() ? families[index] : nullptr;
  }

  ~Handle() {
    if (db == nullptr) return;
    const absl::Status closed = Rocks("close", [&] {
      for (rocksdb::ColumnFamilyHandle* one : families) {
        db->DestroyColumnFamilyHandle(one).PermitUncheckedError();
      }
      return db->Close();
    });
    if (!closed.ok()) KVTIER_LOG(WARNING) << closed.message();
  }
};

// Waits while the database is being reopened.
class RocksDbDatabase::Access {
 public:
  explicit Access(RocksDbDatabase* database) : database_(database) {
    MutexLock lock(&database->mutex_);
    while (database->reopening_) database->changed_.Wait(&database->mutex_);
    handle_ = database->handle_.get();
    if (handle_ != nullptr) ++database->users_;
  }
  ~Access() {
    if (handle_ == nullptr) return;
    MutexLock lock(&database_->mutex_);
    if (--database_->users_ == 0) database_->changed_.SignalAll();
  }
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

  absl::Status status() const {
    return handle_ != nullptr ? absl::OkStatus()
                              : absl::UnavailableError("the database could not be opened again");
  }
  absl::Status writable() const {
    KVTIER_RETURN_IF_ERROR(status());
    return !handle_->read_only ? absl::OkStatus()
                               : absl::UnavailableError("the database is open for reading only");
  }
  Handle* operator->() const { return handle_; }

 private:
  RocksDbDatabase* const database_;
  Handle* handle_;
};

RocksDbDatabase::RocksDbDatabase(std::string folder, Mode mode, rocksdb::Env* env,
                                 uint64_t memory_bytes)
    : folder_(std::move(folder)),
      mode_(mode),
      env_(env != nullptr ? env : rocksdb::Env::Default()),
      memory_bytes_(std::clamp(memory_bytes, kMemoryBytesMin, kMemoryBytesMax)),
      messages_(std::make_shared<Messages>()) {}

RocksDbDatabase::~RocksDbDatabase() = default;

uint64_t RocksDbDatabase::log_damage() const { return messages_->log_damage(); }

absl::StatusOr<std::unique_ptr<RocksDbDatabase>> RocksDbDatabase::Open(std::string folder,
                                                                       Mode mode, rocksdb::Env* env,
                                                                       uint64_t memory_bytes) {
  std::unique_ptr<RocksDbDatabase> database(
      new RocksDbDatabase(std::move(folder), mode, env, memory_bytes));
  const bool read_only = mode == Mode::kReadOnly;
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<Handle> handle, database->OpenHandle(read_only));
  if (!read_only) database->direct_writes_ = database->HasDirectWrites();
  MutexLock lock(&database->mutex_);
  database->handle_ = std::move(handle);
  return database;
}

// Some file systems refuse them (tmpfs does).
bool RocksDbDatabase::HasDirectWrites() {
  const std::string file = folder_ + "/direct-writes.probe";
  const absl::Status opened = Rocks(file, [&] {
    std::unique_ptr<rocksdb::WritableFile> probe;
    const rocksdb::Status status = env_->NewWritableFile(file, &probe, MakeFileOptions(true));
    return status.ok() ? probe->Close() : status;
  });
  rocksdb_files::Remove(env_, file).IgnoreError();  // Empty, and RocksDB ignores it.
  if (!opened.ok()) KVTIER_LOG(INFO) << "no direct writes here: " << opened.message();
  return opened.ok();
}

absl::StatusOr<std::unique_ptr<RocksDbDatabase::Handle>> RocksDbDatabase::OpenHandle(
    bool read_only) {
  const std::shared_ptr<rocksdb::Cache> cache = rocksdb::NewLRUCache(memory_bytes_ / 5);
  std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, MakeRecordsOptions(cache)},
      {"segments", MakeSegmentsOptions()},
      {"objects", MakeRecordsOptions(cache)},
      {"residency", MakeRecordsOptions(cache)},
      {"attributes", MakeRecordsOptions(cache)},
  };
  rocksdb::DBOptions options = MakeDbOptions(env_, memory_bytes_);
  options.info_log = messages_;
  if (read_only) {
    // Nothing is made then. If they cannot be listed, opening says why.
    std::vector<std::string> names;
    const absl::Status listed = Rocks(absl::StrCat("list ", folder_), [&] {
      return rocksdb::DB::ListColumnFamilies(options, folder_, &names);
    });
    while (listed.ok() && std::ranges::count(names, families.back().name) == 0) {
      families.pop_back();
    }
  }
  auto handle = std::make_unique<Handle>();
  handle->read_only = read_only;
  const auto open = [&] {
    return Rocks(absl::StrCat("open ", folder_), [&] {
      rocksdb::DB* db = nullptr;
      const rocksdb::Status status =
          read_only
              ? rocksdb::DB::OpenForReadOnly(options, folder_, families, &handle->families, &db)
              : rocksdb::DB::Open(options, folder_, families, &handle->families, &db);
      handle->db.reset(db);
      return status;
    });
  };
  absl::Status opened = open();
  if (absl::IsDataLoss(opened)) {
    // One damaged file must not take every object with it: without paranoid checks RocksDB opens
    // the rest, and reading the damaged band says DATA_LOSS.
    KVTIER_LOG(ERROR) << opened.message() << "; opening what is intact";
    options.paranoid_checks = false;
    opened = open();
  }
  if (absl::StrContains(opened.message(), "/LOCK") &&
      (absl::StrContains(opened.message(), "lock file") ||
       absl::StrContains(opened.message(), "lock hold"))) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder_, " is in use by another process: ", opened.message()));
  }
  KVTIER_RETURN_IF_ERROR(opened);
  return handle;
}

// --- After a failed write ------------------------------------------------------------------------

void RocksDbDatabase::MarkFailed(const absl::Status& status) {
  KVTIER_LOG(ERROR) << folder_ << ": " << status.message();
  MutexLock lock(&mutex_);
  has_failed_ = true;
}

absl::Status RocksDbDatabase::Reopen() {
  std::unique_ptr<Handle> old;
  {
    MutexLock lock(&mutex_);
    reopening_ = true;
    while (users_ > 0) changed_.Wait(&mutex_);
    old = std::move(handle_);
  }
  old.reset();  // RocksDB holds a lock on the folder.
  KVTIER_SYNC_POINT("store.reopen.closed");
  absl::StatusOr<std::unique_ptr<Handle>> handle = OpenHandle(/*read_only=*/false);
  const absl::Status opened = handle.status();
  if (!opened.ok()) handle = OpenHandle(/*read_only=*/true);
  MutexLock lock(&mutex_);
  if (handle.ok()) handle_ = *std::move(handle);
  has_failed_ = !opened.ok();
  reopening_ = false;
  changed_.SignalAll();
  return opened;
}

absl::Status RocksDbDatabase::CheckMode() const {
  return mode_ == Mode::kReadWrite
             ? absl::OkStatus()
             : absl::FailedPreconditionError(absl::StrCat(folder_, " was opened read-only"));
}

absl::Status RocksDbDatabase::EnsureWritableLocked() {
  KVTIER_RETURN_IF_ERROR(CheckMode());
  bool has_failed;
  {
    MutexLock lock(&mutex_);
    has_failed = has_failed_;
  }
  if (has_failed) KVTIER_RETURN_IF_ERROR(Reopen());
  if (undo_.empty()) return absl::OkStatus();
  const absl::Status undone = WriteBatch(undo_);
  if (!undone.ok()) {
    MarkFailed(undone);
    return undone;
  }
  undo_.clear();
  return absl::OkStatus();
}

absl::Status RocksDbDatabase::EnsureWritable() {
  MutexLock lock(&write_mutex_);
  return EnsureWritableLocked();
}

// --- Records -------------------------------------------------------------------------------------

absl::Status RocksDbDatabase::WriteBatch(std::span<const RecordChange> changes) {
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.writable());
  return Rocks("write records", [&] {
    rocksdb::WriteBatch batch;
    rocksdb::Status status;
    for (const RecordChange& change : changes) {
      rocksdb::ColumnFamilyHandle* const family = access->family(change.family);
      if (status.ok()) {
        status = change.value.has_value() ? batch.Put(family, change.key, *change.value)
                                          : batch.Delete(family, change.key);
      }
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    if (status.ok()) status = access->db->Write(options, &batch);
    // Its background threads fall behind on a busy machine. They are waited for here, where writers
    // take turns; what a flush runs into, the next write is told.
    uint64_t unflushed_bytes = 0;
    if (status.ok() &&
        access->db->GetAggregatedIntProperty(rocksdb::DB::Properties::kCurSizeAllMemTables,
                                             &unflushed_bytes) &&
        unflushed_bytes > WriteBufferBytes(memory_bytes_)) {
      access->db->Flush(rocksdb::FlushOptions(), access->families).PermitUncheckedError();
    }
    return status;
  });
}

absl::StatusOr<std::vector<RocksDbDatabase::RecordChange>> RocksDbDatabase::Inverse(
    std::span<const RecordChange> changes) {
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.status());
  std::vector<RecordChange> inverse;
  for (const RecordChange& change : changes) {
    std::string value;
    const absl::Status read = Rocks("read a record", [&] {
      return access->db->Get(rocksdb::ReadOptions(), access->family(change.family), change.key,
                             &value);
    });
    if (read.ok()) {
      inverse.push_back({change.family, change.key, std::move(value)});
    } else if (absl::IsNotFound(read) || absl::IsDataLoss(read)) {
      inverse.push_back({change.family, change.key, std::nullopt});
    } else {
      return read;
    }
  }
  return inverse;
}

absl::Status RocksDbDatabase::WriteRecords(std::span<const RecordChange> changes) {
  MutexLock lock(&write_mutex_);
  KVTIER_RETURN_IF_ERROR(EnsureWritableLocked());
  KVTIER_ASSIGN_OR_RETURN(std::vector<RecordChange> inverse, Inverse(changes));
  absl::Status written = WriteBatch(changes);
  if (!written.ok()) {
    MarkFailed(written);
    undo_ = std::move(inverse);
  }
  return written;
}

absl::Status RocksDbDatabase::VisitRecords(
    Family family, absl::FunctionRef<void(absl::string_view, absl::string_view)> visit) {
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.status());
  rocksdb::ColumnFamilyHandle* const from = access->family(family);
  if (from == nullptr) return absl::OkStatus();
  return Rocks("read records", [&] {
    const std::unique_ptr<rocksdb::Iterator> records(
        access->db->NewIterator(rocksdb::ReadOptions(), from));
    for (records->SeekToFirst(); records->Valid(); records->Next()) {
      visit(ToView(records->key()), ToView(records->value()));
    }
    return records->status();
  });
}

// --- Segments ------------------------------------------------------------------------------------

absl::Status RocksDbDatabase::WriteSegmentFile(const std::string& file,
                                               std::span<const Part> parts) {
  KVTIER_RETURN_IF_ERROR(CheckMode());
  const absl::Status written = Rocks(absl::StrCat("write ", file), [&] {
    // Without a column family: the writer must not keep the database from being reopened.
    rocksdb::SstFileWriter writer(
        MakeFileOptions(direct_writes_),
        rocksdb::Options(MakeDbOptions(env_, memory_bytes_), MakeSegmentsOptions()),
        /*column_family=*/nullptr, /*invalidate_page_cache=*/false);
    rocksdb::Status status = writer.Open(file);
    for (const Part& part : parts) {
      if (status.ok()) status = writer.Put(part.key, ToSlice(AsStringView(part.bytes)));
    }
    if (status.ok()) status = writer.Finish();  // Syncs the file.
    return status;
  });
  if (!written.ok()) {
    const absl::Status removed = rocksdb_files::Remove(env_, file);
    if (!removed.ok()) KVTIER_LOG(WARNING) << "left for the next start: " << removed.message();
  }
  return written;
}

absl::Status RocksDbDatabase::IngestSegmentFiles(const std::vector<std::string>& files) {
  KVTIER_RETURN_IF_ERROR(EnsureWritable());
  absl::Status ingested;
  {
    const Access access(this);
    KVTIER_RETURN_IF_ERROR(access.writable());
    rocksdb::IngestExternalFileOptions options;
    options.move_files = true;
    options.failed_move_fall_back_to_copy = false;  // Same file system: a hard link works.
    options.snapshot_consistency = false;
    options.write_global_seqno = false;
    ingested = Rocks("ingest", [&] {
      return access->db->IngestExternalFile(access->family(Family::kSegments), files, options);
    });
  }
  if (!ingested.ok()) MarkFailed(ingested);
  return ingested;
}

uint64_t RocksDbDatabase::memory_bytes() {
  const Access access(this);
  if (!access.status().ok()) return 0;
  uint64_t bytes = 0;
  for (const std::string* property : {&rocksdb::DB::Properties::kSizeAllMemTables,
                                      &rocksdb::DB::Properties::kEstimateTableReadersMem}) {
    uint64_t sum = 0;
    if (access->db->GetAggregatedIntProperty(*property, &sum)) bytes += sum;
  }
  // One cache, which every family of records would count.
  uint64_t cached = 0;
  if (access->db->GetIntProperty(access->family(Family::kObjects),
                                 rocksdb::DB::Properties::kBlockCacheUsage, &cached)) {
    bytes += cached;
  }
  return bytes;
}

absl::StatusOr<size_t> RocksDbDatabase::ReadPart(const std::string& key, MutableByteSpan out) {
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.status());
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // Ours covers the payload, and the hardware computes it.
  options.fill_cache = false;
  rocksdb::PinnableSlice value;
  bool is_file_gone = false;
  const absl::Status read = Rocks("read", [&] {
    const rocksdb::Status status =
        access->db->Get(options, access->family(Family::kSegments), key, &value);
    is_file_gone = status.IsPathNotFound();
    return status;
  });
  if (is_file_gone) return absl::DataLossError(read.message());
  KVTIER_RETURN_IF_ERROR(read);
  if (value.size() > out.size()) return absl::DataLossError("part is too large");
  std::memcpy(out.data(), value.data(), value.size());
  return value.size();
}

absl::Status RocksDbDatabase::RemoveSegments(const std::string& begin, const std::string& end) {
  KVTIER_RETURN_IF_ERROR(EnsureWritable());
  absl::Status removed;
  {
    const Access access(this);
    KVTIER_RETURN_IF_ERROR(access.writable());
    rocksdb::ColumnFamilyHandle* const family = access->family(Family::kSegments);
    const rocksdb::Slice first = begin;
    const rocksdb::Slice limit = end;
    removed = Rocks("remove segments", [&] {
      return rocksdb::DeleteFilesInRange(access->db.get(), family, &first, &limit,
                                         /*include_end=*/false);
    });
    KVTIER_SYNC_POINT("store.drop.after_segments");
    // A band is a file, so nothing is left, unless RocksDB put it on level 0 (it does when a band
    // is put again over a tombstone). Those keys take the long way.
    bool has_remnants = false;
    if (removed.ok()) {
      rocksdb::ReadOptions options;
      options.iterate_upper_bound = &limit;
      options.verify_checksums = false;
      removed = Rocks("look for remnants", [&] {
        const std::unique_ptr<rocksdb::Iterator> keys(access->db->NewIterator(options, family));
        keys->Seek(first);
        has_remnants = keys->Valid();
        return rocksdb::Status::OK();  // A file that cannot be read has nothing to offer.
      });
    }
    if (has_remnants) {
      removed = Rocks("remove remnants", [&] {
        const rocksdb::Status status =
            access->db->DeleteRange(rocksdb::WriteOptions(), family, first, limit);
        return status.ok() ? access->db->CompactRange(rocksdb::CompactRangeOptions(), family,
                                                      &first, &limit)
                           : status;
      });
    }
  }
  if (!removed.ok()) MarkFailed(removed);
  return removed;
}

absl::StatusOr<std::vector<RocksDbDatabase::SegmentFile>> RocksDbDatabase::ListSegmentFiles() {
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.status());
  std::vector<SegmentFile> files;
  KVTIER_RETURN_IF_ERROR(Rocks("list files", [&] {
    rocksdb::ColumnFamilyMetaData metadata;
    access->db->GetColumnFamilyMetaData(access->family(Family::kSegments), &metadata);
    for (const rocksdb::LevelMetaData& level : metadata.levels) {
      for (const rocksdb::SstFileMetaData& file : level.files) {
        files.push_back({file.smallestkey, file.largestkey});
      }
    }
    return rocksdb::Status::OK();
  }));
  return files;
}

// --- Files ---------------------------------------------------------------------------------------

namespace rocksdb_files {
namespace {
rocksdb::Env* OrDefault(rocksdb::Env* env) {
  return env != nullptr ? env : rocksdb::Env::Default();
}
}  // namespace

absl::StatusOr<bool> Exists(rocksdb::Env* env, const std::string& path) {
  const absl::Status status = Rocks(path, [&] { return OrDefault(env)->FileExists(path); });
  if (absl::IsNotFound(status)) return false;
  KVTIER_RETURN_IF_ERROR(status);
  return true;
}

absl::StatusOr<std::string> Read(rocksdb::Env* env, const std::string& path) {
  std::string text;
  KVTIER_RETURN_IF_ERROR(
      Rocks(path, [&] { return rocksdb::ReadFileToString(OrDefault(env), path, &text); }));
  return text;
}

absl::Status WriteAtomically(rocksdb::Env* env, const std::string& folder, const std::string& name,
                             absl::string_view content) {
  const std::string path = folder + "/" + name;
  return Rocks(path, [&] {
    rocksdb::Status status = rocksdb::WriteStringToFile(OrDefault(env), ToSlice(content),
                                                        path + ".new", /*should_sync=*/true);
    if (status.ok()) status = OrDefault(env)->RenameFile(path + ".new", path);
    std::unique_ptr<rocksdb::Directory> directory;
    if (status.ok()) status = OrDefault(env)->NewDirectory(folder, &directory);
    if (status.ok()) status = directory->Fsync();
    return status;
  });
}

absl::StatusOr<std::vector<std::string>> ListFolder(rocksdb::Env* env, const std::string& folder) {
  std::vector<std::string> names;
  KVTIER_RETURN_IF_ERROR(
      Rocks(folder, [&] { return OrDefault(env)->GetChildren(folder, &names); }));
  std::erase_if(names, [](const std::string& name) { return name == "." || name == ".."; });
  return names;
}

absl::Status CreateFolder(rocksdb::Env* env, const std::string& folder) {
  KVTIER_ASSIGN_OR_RETURN(const bool exists, Exists(env, folder));
  if (exists) {  // As a folder?
    return Rocks(folder, [&] { return OrDefault(env)->CreateDirIfMissing(folder); });
  }
  std::string parent = std::filesystem::path(folder).parent_path();
  if (parent.empty()) parent = ".";
  KVTIER_RETURN_IF_ERROR(CreateFolder(env, parent));
  return Rocks(folder, [&] {
    rocksdb::Status status = OrDefault(env)->CreateDirIfMissing(folder);
    std::unique_ptr<rocksdb::Directory> directory;
    if (status.ok()) status = OrDefault(env)->NewDirectory(parent, &directory);
    if (status.ok()) status = directory->Fsync();
    return status;
  });
}

absl::Status EmptyFolder(rocksdb::Env* env, const std::string& folder) {
  return Rocks(folder, [&] {
    rocksdb::Status status = OrDefault(env)->CreateDirIfMissing(folder);
    std::vector<std::string> names;
    if (status.ok()) status = OrDefault(env)->GetChildren(folder, &names);
    for (const std::string& name : names) {
      if (!status.ok()) break;
      if (name != "." && name != "..") status = OrDefault(env)->DeleteFile(folder + "/" + name);
    }
    return status;
  });
}

absl::Status Remove(rocksdb::Env* env, const std::string& path) {
  KVTIER_ASSIGN_OR_RETURN(const bool exists, Exists(env, path));
  if (!exists) return absl::OkStatus();
  return Rocks(path, [&] { return OrDefault(env)->DeleteFile(path); });
}

}  // namespace rocksdb_files

}  // namespace kvtier
