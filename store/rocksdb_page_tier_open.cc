// Start-up: the folder, its database, and the names in it.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/metadata.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_page_tier_impl.h"
#include "store/rocksdb_status.h"
#include "store/rocksdb_torn_list.h"

namespace kvtier {
namespace {

constexpr char kPagesFamily[] = "pages";
constexpr uint64_t kWriteBufferBytesMax = uint64_t{64} << 20;
constexpr uint64_t kMemoryBytesMin = uint64_t{256} << 10;
// From which the largest page that there is fits into a write buffer.
constexpr uint64_t kMemoryBytesOfLargestPage =
    (limits::kPageBytesMax + kPageDiskOverheadBytes) / 2 * 5;
constexpr uint64_t kMemoryBytesMax = kWriteBufferBytesMax / 2 * 5;
// An entry of a file in the list of files, at most; a list begins with those of all files, and may
// grow by as much before the next one.
constexpr uint64_t kListBytesPerFile = 160;
constexpr uint64_t kListBytesMin = uint64_t{64} << 10;

}  // namespace

// Of the memory, 2 of 5 parts are the pages that are being written, 2 those that are being flushed,
// and less than 1 the same of names.
RocksDbPageShares::RocksDbPageShares(uint64_t budget, uint64_t memory)
    : write_buffer(
          std::max<uint64_t>(std::min({budget / 60, kWriteBufferBytesMax, memory / 5 * 2}), 1)),
      list(std::max(kListBytesMin, 2 * kListBytesPerFile * (budget / write_buffer))),
      files(budget - std::min(budget, 10 * write_buffer + 2 * list)),
      window(files - std::min(files, 3 * write_buffer)) {}

uint64_t RocksDbPageShares::WindowWith(uint64_t largest) const {
  return files - std::min(files, std::max(3 * write_buffer, largest + write_buffer));
}

RocksDbPageTier::RocksDbPageTier(const RocksDbPageTierOptions& options)
    : options_(options),
      env_(options.env != nullptr ? options.env : rocksdb::Env::Default()),
      shares_(options.budget_bytes, options.memory_bytes == 0
                                        ? kMemoryBytesMax
                                        : std::max(options.memory_bytes, kMemoryBytesMin)),
      handle_(options.folder, [this](bool read_only) { return OpenDatabase(read_only); }) {}

absl::Status RocksDbPageTier::Open() {
  if (options_.budget_bytes < kPageDiskBudgetMin) {
    return absl::InvalidArgumentError(absl::StrCat("a disk budget for pages of ",
                                                   options_.budget_bytes, " bytes; the least is ",
                                                   kPageDiskBudgetMin));
  }
  KVTIER_RETURN_IF_ERROR(rocksdb_files::CreateFolder(env_, options_.folder));
  KVTIER_RETURN_IF_ERROR(CheckFormat());
  // By us, because RocksDB does not sync the folder that names it.
  KVTIER_RETURN_IF_ERROR(rocksdb_files::CreateFolder(env_, DatabaseFolder()));
  KVTIER_RETURN_IF_ERROR(OpenOrReset());
  return ReadNames();
}

absl::Status RocksDbPageTier::OpenOrReset() {
  absl::Status opened = handle_.Open(/*read_only=*/false);
  if (opened.ok() || !has_found_damage_) return opened;
  // What a loss of power tore off its list of files was never acknowledged, what is in front of it
  // was. A missing list, say, is no such thing.
  const absl::StatusOr<std::optional<TornList>> torn = FindTornList(env_, DatabaseFolder());
  if (torn.ok() && torn->has_value()) {
    KVTIER_LOG(WARNING) << (*torn)->ToString();
    KVTIER_RETURN_IF_ERROR(CutTornEnd(env_, **torn));
    {
      MutexLock lock(&mutex_);
      ++list_cuts_;
    }
    opened = handle_.Open(/*read_only=*/false);
    if (opened.ok() || !has_found_damage_) return opened;
  }
  KVTIER_LOG(ERROR) << opened.message() << "; pages begin anew";
  KVTIER_RETURN_IF_ERROR(rocksdb_files::EmptyFolder(env_, DatabaseFolder()));
  {
    MutexLock lock(&mutex_);
    ++resets_;
  }
  return handle_.Open(/*read_only=*/false);
}

absl::Status RocksDbPageTier::CheckFormat() {
  const std::string file = options_.folder + "/FORMAT";
  KVTIER_ASSIGN_OR_RETURN(const bool exists, rocksdb_files::Exists(env_, file));
  if (!exists)
    return rocksdb_files::WriteAtomically(env_, options_.folder, "FORMAT",
                                          page_disk_format::kFormatFile);
  KVTIER_ASSIGN_OR_RETURN(const std::string text, rocksdb_files::Read(env_, file));
  if (text != page_disk_format::kFormatFile) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.folder, ": pages of another format: \"",
                     absl::string_view(text).substr(0, text.find('\n')), "\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<OpenRocksDb>> RocksDbPageTier::OpenDatabase(bool read_only) {
  rocksdb::DBOptions options;
  options.env = env_;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A damaged log record costs the pages in it, not all that came after.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options.max_open_files = -1;  // FIFO compaction wants it.
  options.max_total_wal_size = 2 * shares_.write_buffer;
  // RocksDB's own is 1 GiB, which a small budget would not have room for.
  options.max_manifest_file_size = shares_.list;
  options.info_log = messages_.logger();
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.max_bgerror_resume_count = 0;  // We recover from failed writes ourselves.

  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;  // Host memory is the cache, and has a budget.
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  table.block_size = 16 << 10;  // Fewer index entries than blocks of a page each.

  constexpr uint64_t kNever = uint64_t{100} * 365 * 24 * 3600;  // Seconds.
  rocksdb::ColumnFamilyOptions pages;
  pages.compaction_style = rocksdb::kCompactionStyleFIFO;
  pages.compaction_options_fifo.max_table_files_size = shares_.files;
  // Pages go when the budget is full, not when they are old: left alone, RocksDB takes 30 days.
  pages.ttl = kNever;
  pages.periodic_compaction_seconds = kNever;
  pages.compression = rocksdb::kNoCompression;
  pages.write_buffer_size = shares_.write_buffer;
  pages.max_write_buffer_number = 2;
  pages.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));

  rocksdb::ColumnFamilyOptions names;
  names.compression = rocksdb::kNoCompression;
  names.write_buffer_size = std::max(shares_.write_buffer / 8, uint64_t{64} << 10);
  names.max_write_buffer_number = 2;
  names.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));

  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, names}, {kPagesFamily, pages}, {"names", names}};
  bool is_lost = false;
  absl::StatusOr<std::unique_ptr<OpenRocksDb>> opened =
      OpenRocks(DatabaseFolder(), options, families, read_only, &is_lost);
  if (!opened.ok() && is_lost) {
    // Without paranoid checks RocksDB opens what is left when a file of pages is gone.
    KVTIER_LOG(ERROR) << opened.status().message() << "; opening what is intact";
    options.paranoid_checks = false;
    opened = OpenRocks(DatabaseFolder(), options, families, read_only, &is_lost);
  }
  has_found_damage_ = is_lost;
  KVTIER_RETURN_IF_ERROR(opened.status());
  KVTIER_CHECK_GE((*opened)->db->GetOptions(PagesOf(**opened)).ttl, kNever)
      << "RocksDB would remove pages by age";
  return opened;
}

absl::Status RocksDbPageTier::ReadNames() {
  const RocksDbHandle::Access access(&handle_);
  KVTIER_RETURN_IF_ERROR(access.status());
  MutexLock lock(&mutex_);
  bool is_file_gone = false;
  uint64_t largest_bytes = 0;  // Of the files of pages.
  const absl::Status read = Rocks("read names", [&] {
    std::vector<rocksdb::LiveFileMetaData> files;
    access->db->GetLiveFilesMetaData(&files);
    for (const rocksdb::LiveFileMetaData& file : files) {
      if (file.column_family_name == kPagesFamily) {
        largest_bytes = std::max(largest_bytes, uint64_t{file.size});
      }
    }
    const std::unique_ptr<rocksdb::Iterator> records(
        access->db->NewIterator(rocksdb::ReadOptions(), NamesOf(*access)));
    for (records->SeekToFirst(); records->Valid(); records->Next()) {
      mutex_.AssertHeld();
      const absl::string_view key(records->key().data(), records->key().size());
      const absl::string_view value(records->value().data(), records->value().size());
      const std::optional<PageName> name = page_disk_format::ParseNameKey(key);
      const std::optional<Place> place = page_disk_format::DecodePlace(key, value);
      if (!name.has_value() || !place.has_value()) {
        ++records_lost_;
        continue;
      }
      Publish(*name, *place);
      next_position_ = std::max(next_position_, place->position + ChargeOf(place->digest.bytes));
    }
    is_file_gone = records->status().IsPathNotFound();
    return records->status();
  });
  if (absl::IsDataLoss(read) || is_file_gone) {
    // Pages behind the damage are misses from now on; the others are served.
    KVTIER_LOG(ERROR) << options_.folder << ": " << read.message();
    ++records_lost_;
  } else {
    KVTIER_RETURN_IF_ERROR(read);
  }
  position_at_open_ = next_position_;
  window_at_open_ = shares_.WindowWith(largest_bytes);
  // After a start with a smaller budget. Batches to come remove their records.
  const std::vector<PageName> expired = TakeExpired();
  busy_.clear();
  for (const PageName& name : expired) PutInDoubt(name);
  KVTIER_LOG(INFO) << "recovered " << places_.size() << " pages, " << expired.size()
                   << " were beyond the budget, lost " << records_lost_ << " records";
  return absl::OkStatus();
}

uint64_t RocksDbPageMemoryBytes(uint64_t host_budget_bytes) {
  const uint64_t for_largest = std::min(host_budget_bytes / 2, kMemoryBytesOfLargestPage);
  return std::clamp(std::max(host_budget_bytes / 4, for_largest), kMemoryBytesMin, kMemoryBytesMax);
}

absl::StatusOr<std::unique_ptr<PageTier>> OpenRocksDbPageTier(
    const RocksDbPageTierOptions& options) {
  auto tier = std::make_unique<RocksDbPageTier>(options);
  KVTIER_RETURN_IF_ERROR(tier->Open());
  return tier;
}

}  // namespace kvtier
