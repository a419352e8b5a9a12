#include "store/rocksdb_database.h"

#include <algorithm>
#include <cstring>
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
#include "store/rocksdb_files.h"
#include "store/rocksdb_list_mark.h"
#include "store/rocksdb_status.h"

namespace kvtier {
namespace {

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }
absl::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

using Family = RocksDbDatabase::Family;

// Its files other than segments and lists of files, in 16ths of their room: up to 3 of logs (one
// being written, one whose records are being flushed, one that is being removed), 8 of tables that
// wait to be merged, 1 of options; 4 are spare.
constexpr uint64_t kFilesShares = 16;

rocksdb::DBOptions MakeDbOptions(const RocksDbDatabase::Options& of, uint64_t unflushed_bytes) {
  rocksdb::DBOptions options;
  options.env = of.env;
  // A damaged record of the log costs itself, not all that come after it. Each of ours stands for
  // itself, and was synced before it was acknowledged, so none hides behind a torn one.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A file per band: all of them open at once would be more files than a process may have.
  options.max_open_files =
      static_cast<int>(of.memory_bytes * 2 / 5 / RocksDbDatabase::kOpenFileBytes);
  options.db_write_buffer_size = unflushed_bytes;
  options.max_total_wal_size = 2 * unflushed_bytes;
  // Rolled over, or it would grow with every band that comes and goes. A new list begins with all
  // files there are: a limit that those alone reach has each ingestion write all of it.
  options.max_manifest_file_size = of.list_bytes;
  // Room that is taken before it is needed is room that no budget knows.
  options.allow_fallocate = false;
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
// just written is in host memory anyway. A buffer of 1 MiB stays in the processor's cache between
// being filled and being written (docs/adr/0016-past-the-page-cache.md).
rocksdb::EnvOptions MakeFileOptions(bool direct_writes) {
  rocksdb::EnvOptions options;
  options.use_direct_writes = direct_writes;
  options.writable_file_max_buffer_size = 1 << 20;
  return options;
}

// `cache`: of all families together.
rocksdb::ColumnFamilyOptions MakeRecordsOptions(const std::shared_ptr<rocksdb::Cache>& cache,
                                                uint64_t unflushed_bytes) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  rocksdb::ColumnFamilyOptions options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = unflushed_bytes;
  // Memory is taken in pieces of it: small ones, because each family has one.
  options.arena_block_size = std::clamp<uint64_t>(unflushed_bytes / 16, 4 << 10, 1 << 20);
  return options;
}

// Null only if read_only: a store of an older format lacks the latest families. The default one is
// before them.
rocksdb::ColumnFamilyHandle* FamilyOf(const OpenRocksDb& opened, Family family) {
  const size_t index = 1 + static_cast<size_t>(family);
  return index < opened.families.size() ? opened.families[index] : nullptr;
}

}  // namespace

RocksDbDatabase::RocksDbDatabase(std::string folder, const Options& options)
    : folder_(std::move(folder)),
      options_(
          {.mode = options.mode,
           .env = options.env != nullptr ? options.env : rocksdb::Env::Default(),
           .memory_bytes = std::clamp(options.memory_bytes, kMemoryBytesMin, kMemoryBytesMax),
           .files_bytes = options.files_bytes == 0
                              ? kFilesBytesMax
                              : std::clamp(options.files_bytes, kFilesBytesMin, kFilesBytesMax),
           .list_bytes = options.list_bytes == 0 ? kListBytesDefault
                                                 : std::max(options.list_bytes, kListBytesMin),
           .direct_reads = options.direct_reads}),
      handle_(folder_, [this](bool read_only) { return OpenFolder(read_only); }) {}

RocksDbDatabase::~RocksDbDatabase() = default;

absl::StatusOr<std::unique_ptr<RocksDbDatabase>> RocksDbDatabase::Open(std::string folder,
                                                                       const Options& options) {
  std::unique_ptr<RocksDbDatabase> database(new RocksDbDatabase(std::move(folder), options));
  const bool read_only = options.mode == Mode::kReadOnly;
  if (!read_only) {
    KVTIER_RETURN_IF_ERROR(rocksdb_files::CreateFolder(options.env, database->folder_));
    database->has_direct_io_ = rocksdb_files::HasDirectIo(options.env, database->folder_);
  }
  KVTIER_RETURN_IF_ERROR(database->handle_.Open(read_only));
  return database;
}

// A tenth of the memory stays free for what is being flushed.
uint64_t RocksDbDatabase::UnflushedBytesMax() const {
  return std::min(options_.memory_bytes * 3 / 10, options_.files_bytes / kFilesShares);
}

absl::StatusOr<std::unique_ptr<OpenRocksDb>> RocksDbDatabase::OpenFolder(bool read_only) const {
  const std::shared_ptr<rocksdb::Cache> cache = rocksdb::NewLRUCache(options_.memory_bytes / 5);
  const rocksdb::ColumnFamilyOptions records = MakeRecordsOptions(cache, UnflushedBytesMax());
  std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, records},
      {"segments", MakeSegmentsOptions()},
      {"objects", records},
      {"residency", records},
      {"attributes", records},
  };
  rocksdb::DBOptions options = MakeDbOptions(options_, UnflushedBytesMax());
  options.info_log = messages_.logger();
  options.use_direct_reads = options_.direct_reads && has_direct_io_;
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
  KVTIER_RETURN_IF_ERROR(CheckMark(options_.env, folder_));
  const std::shared_ptr<ListMarker> marker = ListMarker::Create(options_.env, folder_);
  if (!read_only) options.listeners.push_back(ListMarker::ListenerOf(marker));
  absl::StatusOr<std::unique_ptr<OpenRocksDb>> opened =
      OpenRocks(folder_, options, families, read_only);
  if (absl::IsDataLoss(opened.status())) {
    // One damaged file must not take every object with it: without paranoid checks RocksDB opens
    // the rest, and reading the damaged band says DATA_LOSS.
    KVTIER_LOG(ERROR) << opened.status().message() << "; opening what is intact";
    options.paranoid_checks = false;
    opened = OpenRocks(folder_, options, families, read_only);
  }
  if (opened.ok() && !read_only) {
    // What opening flushed of the log, whose file is gone now; and at the end what RocksDB's
    // threads did last, of which it tells no listener once it is being closed.
    marker->Mark(*(*opened)->db);
    (*opened)->before_close = [marker](rocksdb::DB& db) { marker->Mark(db); };
  }
  return opened;
}

// --- After a failed write ------------------------------------------------------------------------

absl::Status RocksDbDatabase::CheckMode() const {
  return options_.mode == Mode::kReadWrite
             ? absl::OkStatus()
             : absl::FailedPreconditionError(absl::StrCat(folder_, " was opened read-only"));
}

bool RocksDbDatabase::HasBackgroundError() {
  const RocksDbHandle::Access access(&handle_);
  uint64_t errors = 0;  // Since it was opened.
  return access.writable().ok() &&
         access->db->GetIntProperty(rocksdb::DB::Properties::kBackgroundErrors, &errors) &&
         errors > 0;
}

absl::Status RocksDbDatabase::EnsureWritableLocked() {
  KVTIER_RETURN_IF_ERROR(CheckMode());
  if (HasBackgroundError()) {
    handle_.MarkFailed(absl::UnavailableError("a flush or a merge of records failed"));
  }
  KVTIER_RETURN_IF_ERROR(handle_.EnsureWritable());
  if (undo_.empty()) return absl::OkStatus();
  const absl::Status undone = WriteBatch(undo_);
  if (!undone.ok()) {
    handle_.MarkFailed(undone);
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
  const RocksDbHandle::Access access(&handle_);
  KVTIER_RETURN_IF_ERROR(access.writable());
  return Rocks("write records", [&] {
    rocksdb::WriteBatch batch;
    rocksdb::Status status;
    for (const RecordChange& change : changes) {
      rocksdb::ColumnFamilyHandle* const family = FamilyOf(*access, change.family);
      if (status.ok()) {
        status = change.value.has_value() ? batch.Put(family, change.key, *change.value)
                                          : batch.Delete(family, change.key);
      }
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    if (status.ok()) status = access->db->Write(options, &batch);
    // Its background threads fall behind on a busy machine. They are waited for here, where writers
    // take turns; what a flush runs into, the next write clears up.
    uint64_t unflushed_bytes = 0;
    if (status.ok() &&
        access->db->GetAggregatedIntProperty(rocksdb::DB::Properties::kCurSizeAllMemTables,
                                             &unflushed_bytes) &&
        unflushed_bytes > UnflushedBytesMax()) {
      access->db->Flush(rocksdb::FlushOptions(), access->families).PermitUncheckedError();
    }
    return status;
  });
}

absl::StatusOr<std::vector<RocksDbDatabase::RecordChange>> RocksDbDatabase::Inverse(
    std::span<const RecordChange> changes) {
  const RocksDbHandle::Access access(&handle_);
  KVTIER_RETURN_IF_ERROR(access.status());
  std::vector<RecordChange> inverse;
  for (const RecordChange& change : changes) {
    std::string value;
    const absl::Status read = Rocks("read a record", [&] {
      return access->db->Get(rocksdb::ReadOptions(), FamilyOf(*access, change.family), change.key,
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
    handle_.MarkFailed(written);
    undo_ = std::move(inverse);
  }
  return written;
}

absl::Status RocksDbDatabase::VisitRecords(
    Family family, absl::FunctionRef<void(absl::string_view, absl::string_view)> visit) {
  const RocksDbHandle::Access access(&handle_);
  KVTIER_RETURN_IF_ERROR(access.status());
  rocksdb::ColumnFamilyHandle* const from = FamilyOf(*access, family);
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
        MakeFileOptions(has_direct_io_),
        rocksdb::Options(MakeDbOptions(options_, UnflushedBytesMax()), MakeSegmentsOptions()),
        /*column_family=*/nullptr, /*invalidate_page_cache=*/false);
    rocksdb::Status status = writer.Open(file);
    for (const Part& part : parts) {
      if (status.ok()) status = writer.Put(part.key, ToSlice(AsStringView(part.bytes)));
    }
    if (status.ok()) status = writer.Finish();  // Syncs the file.
    return status;
  });
  if (!written.ok()) {
    const absl::Status removed = rocksdb_files::Remove(options_.env, file);
    if (!removed.ok()) KVTIER_LOG(WARNING) << "left for the next start: " << removed.message();
  }
  return written;
}

absl::Status RocksDbDatabase::IngestSegmentFiles(const std::vector<std::string>& files) {
  KVTIER_RETURN_IF_ERROR(EnsureWritable());
  absl::Status ingested;
  {
    const RocksDbHandle::Access access(&handle_);
    KVTIER_RETURN_IF_ERROR(access.writable());
    rocksdb::IngestExternalFileOptions options;
    options.move_files = true;
    options.failed_move_fall_back_to_copy = false;  // Same file system: a hard link works.
    options.snapshot_consistency = false;
    options.write_global_seqno = false;
    ingested = Rocks("ingest", [&] {
      return access->db->IngestExternalFile(FamilyOf(*access, Family::kSegments), files, options);
    });
  }
  if (!ingested.ok()) handle_.MarkFailed(ingested);
  return ingested;
}

uint64_t RocksDbDatabase::memory_bytes() {
  const RocksDbHandle::Access access(&handle_);
  if (!access.status().ok()) return 0;
  uint64_t bytes = 0;
  for (const std::string* property : {&rocksdb::DB::Properties::kSizeAllMemTables,
                                      &rocksdb::DB::Properties::kEstimateTableReadersMem}) {
    uint64_t sum = 0;
    if (access->db->GetAggregatedIntProperty(*property, &sum)) bytes += sum;
  }
  // One cache, which every family of records would count.
  uint64_t cached = 0;
  if (access->db->GetIntProperty(FamilyOf(*access, Family::kObjects),
                                 rocksdb::DB::Properties::kBlockCacheUsage, &cached)) {
    bytes += cached;
  }
  return bytes;
}

absl::StatusOr<size_t> RocksDbDatabase::ReadPart(const std::string& key, MutableByteSpan out) {
  const RocksDbHandle::Access access(&handle_);
  KVTIER_RETURN_IF_ERROR(access.status());
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // Ours covers the payload, and the hardware computes it.
  options.fill_cache = false;
  rocksdb::PinnableSlice value;
  bool is_file_gone = false;
  const absl::Status read = Rocks("read", [&] {
    const rocksdb::Status status =
        access->db->Get(options, FamilyOf(*access, Family::kSegments), key, &value);
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
    const RocksDbHandle::Access access(&handle_);
    KVTIER_RETURN_IF_ERROR(access.writable());
    rocksdb::ColumnFamilyHandle* const family = FamilyOf(*access, Family::kSegments);
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
  if (!removed.ok()) handle_.MarkFailed(removed);
  return removed;
}

absl::StatusOr<std::vector<RocksDbDatabase::SegmentFile>> RocksDbDatabase::ListSegmentFiles() {
  const RocksDbHandle::Access access(&handle_);
  KVTIER_RETURN_IF_ERROR(access.status());
  std::vector<SegmentFile> files;
  KVTIER_RETURN_IF_ERROR(Rocks("list files", [&] {
    rocksdb::ColumnFamilyMetaData metadata;
    access->db->GetColumnFamilyMetaData(FamilyOf(*access, Family::kSegments), &metadata);
    for (const rocksdb::LevelMetaData& level : metadata.levels) {
      for (const rocksdb::SstFileMetaData& file : level.files) {
        files.push_back({file.smallestkey, file.largestkey});
      }
    }
    return rocksdb::Status::OK();
  }));
  return files;
}

}  // namespace kvtier
