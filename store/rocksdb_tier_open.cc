// Start-up: the folder, its format and lock, its database, and a list of files that power tore.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "store/disk_format.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_tier_impl.h"
#include "store/rocksdb_torn_list.h"

namespace kvtier {

RocksDbTier::RocksDbTier(RocksDbTierOptions options, const TornList& torn)
    : env_without_torn_end_(options.read_only ? WithoutTornEnd(options.env, torn) : nullptr),
      options_([&] {
        if (options.read_only) options.env = env_without_torn_end_.get();
        return options;
      }()) {
  counters_.log_damage = 1;
}

absl::Status RocksDbTier::Open() {
  const bool must_exist = options_.must_exist || options_.read_only;
  if (!must_exist) {
    KVTIER_RETURN_IF_ERROR(rocksdb_files::CreateFolder(options_.env, options_.folder));
  }
  // Before anything is written, the lock's file included.
  KVTIER_ASSIGN_OR_RETURN(const uint32_t format, FormatVersion());
  if (must_exist && format == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.folder, ": has no FORMAT file; not a kvtier store"));
  }
  // RocksDB has a lock too, but takes it only after staging/ must be empty.
  KVTIER_ASSIGN_OR_RETURN(
      folder_lock_,
      FolderLock::Take(options_.folder,
                       options_.read_only ? FolderLock::Kind::kShared : FolderLock::Kind::kSole));
  const std::string database = options_.folder + "/db";
  const RocksDbDatabase::Options database_options = {
      .mode =
          options_.read_only ? RocksDbDatabase::Mode::kReadOnly : RocksDbDatabase::Mode::kReadWrite,
      .env = options_.env,
      .memory_bytes =
          options_.memory_bytes != 0 ? options_.memory_bytes : RocksDbDatabase::kMemoryBytesMax,
      .files_bytes = options_.files_bytes,
      .list_bytes = options_.list_bytes,
      .direct_reads = options_.direct_reads};
  if (options_.read_only) {
    KVTIER_ASSIGN_OR_RETURN(database_, RocksDbDatabase::Open(database, database_options));
    return absl::OkStatus();
  }
  if (format != disk_format::kStoreFormatVersion) {
    // First, also for an older store: from now on an older build must not write to it.
    KVTIER_RETURN_IF_ERROR(rocksdb_files::WriteAtomically(options_.env, options_.folder, "FORMAT",
                                                          disk_format::EncodeFormatFile()));
  }
  // First: RocksDB may need the room to open.
  KVTIER_RETURN_IF_ERROR(rocksdb_files::EmptyFolder(options_.env, StagingFolder()));
  KVTIER_ASSIGN_OR_RETURN(database_, RocksDbDatabase::Open(database, database_options));
  return absl::OkStatus();
}

// The format is a file of its own, so that another version is refused before RocksDB changes
// anything. 0: a new folder, which may become a store.
absl::StatusOr<uint32_t> RocksDbTier::FormatVersion() {
  const std::string file = options_.folder + "/FORMAT";
  KVTIER_ASSIGN_OR_RETURN(const bool has_format, rocksdb_files::Exists(options_.env, file));
  if (has_format) {
    KVTIER_ASSIGN_OR_RETURN(const std::string text, rocksdb_files::Read(options_.env, file));
    const absl::StatusOr<uint32_t> version = disk_format::ParseFormatFile(text);
    if (version.ok()) return version;
    return absl::Status(version.status().code(),
                        absl::StrCat(options_.folder, ": ", version.status().message()));
  }
  if (options_.must_exist || options_.read_only) return 0;
  KVTIER_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                          rocksdb_files::ListFolder(options_.env, options_.folder));
  for (const std::string& name : names) {
    // What a first start that was cut short leaves, and what a new file system comes with.
    if (name == FolderLock::kFileName || name == "FORMAT.new" || name == "lost+found") continue;
    return absl::FailedPreconditionError(
        absl::StrCat(options_.folder, ": is not empty (", name,
                     ") and has no FORMAT file; not a kvtier store, and not made one"));
  }
  return 0;
}

namespace {

// A list of files whose end a loss of power has torn keeps RocksDB from opening. The store opens
// without that end, if all is there then that records name; `refused` is why it did not with it.
absl::StatusOr<std::unique_ptr<DurableTier>> OpenWithoutTornEnd(const RocksDbTierOptions& options,
                                                                const absl::Status& refused) {
  KVTIER_ASSIGN_OR_RETURN(const std::optional<TornList> torn,
                          FindTornList(options.env, options.folder + "/db"));
  if (!torn.has_value()) return refused;
  KVTIER_LOG(WARNING) << torn->ToString();
  RocksDbTierOptions as_read = options;
  as_read.read_only = true;
  auto look = std::make_unique<RocksDbTier>(as_read, *torn);
  KVTIER_RETURN_IF_ERROR(look->Open());
  if (options.read_only) return look;
  KVTIER_RETURN_IF_ERROR(look->Recover());
  const DurableCounters found = look->counters();
  if (found.bands_lost + found.records_lost > 0) {
    return absl::DataLossError(
        absl::StrCat(refused.message(), "; without its end from byte ", torn->whole_bytes, " on ",
                     torn->file, " would lack ", found.bands_lost, " bands and ",
                     found.records_lost, " records that were acknowledged, so nothing is cut off"));
  }
  // While `look` has the lock: nobody else writes to the list.
  KVTIER_RETURN_IF_ERROR(CutTornEnd(options.env, *torn));
  look.reset();
  auto tier = std::make_unique<RocksDbTier>(options, *torn);
  KVTIER_RETURN_IF_ERROR(tier->Open());
  return tier;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DurableTier>> OpenRocksDbTier(const RocksDbTierOptions& options) {
  auto tier = std::make_unique<RocksDbTier>(options);
  const absl::Status opened = tier->Open();
  if (opened.ok()) return tier;
  tier.reset();  // It may hold the folder's lock.
  return absl::IsDataLoss(opened) ? OpenWithoutTornEnd(options, opened) : opened;
}

uint64_t RocksDbFilesBytes(uint64_t disk_budget_bytes) {
  return std::clamp(disk_budget_bytes / 32, RocksDbDatabase::kFilesBytesMin,
                    RocksDbDatabase::kFilesBytesMax);
}

uint64_t RocksDbListBytes(uint64_t disk_budget_bytes) {
  constexpr uint64_t kSmallStoreMax = uint64_t{64} << 20;
  return std::max({std::min(disk_budget_bytes / 128, kSmallStoreMax), disk_budget_bytes / 1024,
                   RocksDbDatabase::kListBytesMin});
}

uint64_t RocksDbMemoryBytes(uint64_t host_budget_bytes) {
  return std::clamp(host_budget_bytes / 8, RocksDbDatabase::kMemoryBytesMin,
                    RocksDbDatabase::kMemoryBytesMax);
}

}  // namespace kvtier
