#include "store/rocksdb_page_tier.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/metadata.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"
#include "store/page_disk_format.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_handle.h"
#include "store/rocksdb_status.h"
#include "store/rocksdb_torn_list.h"

namespace kvtier {
namespace {

using page_disk_format::NameKey;
using page_disk_format::Place;
using page_disk_format::PositionKey;

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }

constexpr char kPagesFamily[] = "pages";
constexpr uint64_t kWriteBufferBytesMax = uint64_t{64} << 20;
// Names that are remembered while no write succeeds, and how many of them one batch removes. Pages
// of others may come back: whole ones.
constexpr size_t kInDoubtMax = 65536;
constexpr size_t kInDoubtOfBatch = 256;
constexpr uint64_t kMemoryBytesMin = uint64_t{256} << 10;
// From which the largest page that there is fits into a write buffer.
constexpr uint64_t kMemoryBytesOfLargestPage =
    (limits::kPageBytesMax + kPageDiskOverheadBytes) / 2 * 5;
constexpr uint64_t kMemoryBytesMax = kWriteBufferBytesMax / 2 * 5;

// How the budget is spent. In 60ths (so that 1 GiB has room for the largest page), beside the
// window: the write-ahead log has up to 3 (RocksDB flushes above 2, and a batch is at most 1), the
// newest file up to 2 before the oldest goes, the names 1, files that wait for their removal on a
// busy machine 4; and the files hold 3 more than the window, because whole files go.
struct Shares {
  // Of the memory, 2 of 5 parts are the pages that are being written, 2 those that are being
  // flushed, and less than 1 the same of names.
  Shares(uint64_t budget, uint64_t memory)
      : write_buffer(std::min({budget / 60, kWriteBufferBytesMax, memory / 5 * 2})),
        files(budget - 10 * write_buffer),
        window(budget - 13 * write_buffer) {}
  // While there are files as large as `largest`, of an earlier start with a larger write buffer.
  uint64_t WindowWith(uint64_t largest) const {
    return files - std::min(files, std::max(3 * write_buffer, largest + write_buffer));
  }
  uint64_t write_buffer;
  uint64_t files;   // Of pages, before RocksDB drops the oldest.
  uint64_t window;  // Positions that are still found.
};

class RocksDbPageTier final : public PageTier {
 public:
  explicit RocksDbPageTier(const RocksDbPageTierOptions& options)
      : options_(options),
        env_(options.env != nullptr ? options.env : rocksdb::Env::Default()),
        shares_(options.budget_bytes, options.memory_bytes == 0
                                          ? kMemoryBytesMax
                                          : std::max(options.memory_bytes, kMemoryBytesMin)),
        handle_(options.folder, [this](bool read_only) { return OpenDatabase(read_only); }) {}

  absl::Status Open();

  std::vector<absl::Status> Put(std::span<const Write> pages) override;
  absl::StatusOr<std::string> Get(const PageName& name) override;
  std::optional<PageDigest> Find(const PageName& name) override;
  absl::Status Remove(std::span<const PageName> names) override;
  PageTierUsage Usage() override;
  uint64_t BytesOf(const TenantId& tenant) override;
  uint64_t ChargeOf(uint64_t bytes) const override { return bytes + kPageDiskOverheadBytes; }

 private:
  std::string DatabaseFolder() const { return options_.folder + "/db"; }
  absl::Status CheckFormat();
  absl::StatusOr<std::unique_ptr<OpenRocksDb>> OpenDatabase(bool read_only);
  // Pages are a cache: a database that cannot be opened for what is in it is begun anew, and what
  // can be read of one that is damaged is served.
  absl::Status OpenOrReset();
  absl::Status ReadNames();

  // Positions that are still found, back from next_position_.
  uint64_t Window() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Names that have left the window: not found any more, and busy until EndBusy.
  std::vector<PageName> TakeExpired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(const PageName& name, const Place& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Forget(const PageName& name, const std::optional<uint64_t>& position)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndBusy(std::span<const PageName> names) ABSL_LOCKS_EXCLUDED(mutex_);
  // Names whose page is gone while their record is there, or may come back from RocksDB's log after
  // a write that failed: some of them, to be removed with the next batch, and busy until EndBusy.
  // Those in `own` are written anew.
  std::vector<PageName> TakeInDoubt(std::span<const Write* const> own)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PutInDoubt(const PageName& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Durable, all or nothing. `pages` at the positions of `places`.
  absl::Status WriteBatch(std::span<const Write* const> pages, std::span<const Place> places,
                          std::span<const PageName> gone);
  // Those of one batch that are to be written: at most a write buffer of them.
  absl::Status PutSome(std::span<const Write* const> pages);

  const RocksDbPageTierOptions options_;
  rocksdb::Env* const env_;
  const Shares shares_;
  const RocksDbMessages messages_;
  RocksDbHandle handle_;
  bool has_found_damage_ = false;  // OpenDatabase's last attempt; it is called one at a time.

  Mutex mutex_;
  CondVar changed_;  // Something is not busy any more.
  absl::flat_hash_map<PageName, Place> places_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, PageName> order_ ABSL_GUARDED_BY(mutex_);  // By position.
  // Being written or removed: who wants one of them waits, so that the first one's bytes stay.
  absl::flat_hash_set<PageName> busy_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_position_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t position_at_open_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t window_at_open_ ABSL_GUARDED_BY(mutex_) = 0;  // Of what was there then.
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;           // Charged, of places_.
  absl::flat_hash_map<TenantId, uint64_t> bytes_of_ ABSL_GUARDED_BY(mutex_);  // None is 0.
  uint64_t evicted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t records_lost_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t resets_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t list_cuts_ ABSL_GUARDED_BY(mutex_) = 0;  // Torn ends of the list of files.
  absl::flat_hash_set<PageName> in_doubt_ ABSL_GUARDED_BY(mutex_);  // None that places_ has.
};

// --- Opening -------------------------------------------------------------------------------------

// Families as OpenDatabase asks for them.
rocksdb::ColumnFamilyHandle* PagesOf(const OpenRocksDb& opened) { return opened.families[1]; }
rocksdb::ColumnFamilyHandle* NamesOf(const OpenRocksDb& opened) { return opened.families[2]; }

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

// --- In memory -----------------------------------------------------------------------------------

void RocksDbPageTier::Publish(const PageName& name, const Place& place) {
  Forget(name, std::nullopt);
  places_.emplace(name, place);
  order_[place.position] = name;
  bytes_ += ChargeOf(place.digest.bytes);
  bytes_of_[name.tenant] += ChargeOf(place.digest.bytes);
}

// With a position: only if it is still there.
bool RocksDbPageTier::Forget(const PageName& name, const std::optional<uint64_t>& position) {
  const auto found = places_.find(name);
  if (found == places_.end()) return false;
  if (position.has_value() && found->second.position != *position) return false;
  const uint64_t charge = ChargeOf(found->second.digest.bytes);
  bytes_ -= charge;
  const auto of_tenant = bytes_of_.find(name.tenant);
  of_tenant->second -= charge;
  if (of_tenant->second == 0) bytes_of_.erase(of_tenant);
  order_.erase(found->second.position);
  places_.erase(found);
  return true;
}

// RocksDB drops the oldest file at a time, so files of an earlier start may take more than a write
// buffer with them. They go before any page that was written since.
uint64_t RocksDbPageTier::Window() const {
  const uint64_t written = next_position_ - position_at_open_;
  return std::min(shares_.window, std::max(window_at_open_, written));
}

std::vector<PageName> RocksDbPageTier::TakeExpired() {
  std::vector<PageName> expired;
  while (!order_.empty() && next_position_ - order_.begin()->first > Window()) {
    const PageName name = order_.begin()->second;
    Forget(name, std::nullopt);
    ++evicted_;
    // Nobody puts it again before its record is gone. One that is busy is being removed already.
    if (busy_.insert(name).second) expired.push_back(name);
  }
  return expired;
}

void RocksDbPageTier::EndBusy(std::span<const PageName> names) {
  if (names.empty()) return;
  MutexLock lock(&mutex_);
  for (const PageName& name : names) busy_.erase(name);
  changed_.SignalAll();
}

std::optional<PageDigest> RocksDbPageTier::Find(const PageName& name) {
  MutexLock lock(&mutex_);
  const auto found = places_.find(name);
  if (found == places_.end()) return std::nullopt;
  return found->second.digest;
}

PageTierUsage RocksDbPageTier::Usage() {
  MutexLock lock(&mutex_);
  return {.pages = places_.size(),
          .bytes = bytes_,
          .budget_bytes = options_.budget_bytes,
          .page_bytes_max =
              std::min(limits::kPageBytesMax, shares_.write_buffer - kPageDiskOverheadBytes),
          .evicted = evicted_,
          .records_lost = records_lost_,
          .log_damage = messages_.log_damage() + list_cuts_,
          .resets = resets_};
}

uint64_t RocksDbPageTier::BytesOf(const TenantId& tenant) {
  MutexLock lock(&mutex_);
  const auto found = bytes_of_.find(tenant);
  return found == bytes_of_.end() ? 0 : found->second;
}

// --- Writing -------------------------------------------------------------------------------------

std::vector<PageName> RocksDbPageTier::TakeInDoubt(std::span<const Write* const> own) {
  for (const Write* page : own) in_doubt_.erase(page->name);
  std::vector<PageName> taken;
  for (auto name = in_doubt_.begin(); name != in_doubt_.end() && taken.size() < kInDoubtOfBatch;) {
    // Somebody who writes it now takes care of it himself.
    if (!busy_.insert(*name).second) {
      ++name;
      continue;
    }
    taken.push_back(*name);
    in_doubt_.erase(name++);
  }
  return taken;
}

void RocksDbPageTier::PutInDoubt(const PageName& name) {
  if (in_doubt_.size() < kInDoubtMax) in_doubt_.insert(name);
}

absl::Status RocksDbPageTier::WriteBatch(std::span<const Write* const> pages,
                                         std::span<const Place> places,
                                         std::span<const PageName> gone) {
  KVTIER_RETURN_IF_ERROR(handle_.EnsureWritable());
  std::vector<PageName> in_doubt;
  {
    MutexLock lock(&mutex_);
    in_doubt = TakeInDoubt(pages);
  }
  const absl::Status written = [&]() -> absl::Status {
    const RocksDbHandle::Access access(&handle_);
    KVTIER_RETURN_IF_ERROR(access.writable());
    return Rocks("write pages", [&] {
      rocksdb::WriteBatch batch;
      rocksdb::Status status;
      // First, so that a page that went and is put again is there afterwards.
      for (const std::span<const PageName> names : {std::span<const PageName>(in_doubt), gone}) {
        for (const PageName& name : names) {
          if (status.ok()) status = batch.Delete(NamesOf(*access), NameKey(name));
        }
      }
      for (size_t i = 0; i < pages.size(); ++i) {
        const std::string name_key = NameKey(pages[i]->name);
        if (status.ok()) {
          status = batch.Put(PagesOf(*access), PositionKey(places[i].position),
                             ToSlice(pages[i]->bytes));
        }
        if (status.ok()) {
          status = batch.Put(NamesOf(*access), name_key,
                             page_disk_format::EncodePlace(name_key, places[i]));
        }
      }
      rocksdb::WriteOptions options;
      options.sync = true;
      return status.ok() ? access->db->Write(options, &batch) : status;
    });
  }();
  if (!written.ok()) {
    handle_.MarkFailed(written);
    MutexLock lock(&mutex_);
    in_doubt_.insert(in_doubt.begin(), in_doubt.end());
    for (const Write* page : pages) PutInDoubt(page->name);
  }
  EndBusy(in_doubt);
  return written;
}

absl::Status RocksDbPageTier::PutSome(std::span<const Write* const> pages) {
  std::vector<Place> places;
  std::vector<PageName> expired;
  {
    MutexLock lock(&mutex_);
    for (const Write* page : pages) {
      places.push_back(
          {.position = next_position_,
           .digest = {.bytes = static_cast<uint32_t>(page->bytes.size()), .crc32c = page->crc32c}});
      next_position_ += ChargeOf(page->bytes.size());
    }
    expired = TakeExpired();
  }
  KVTIER_SYNC_POINT("store.pages.before_write");
  // If this fails, a crash may bring back what had expired: whole pages, which expire again.
  const absl::Status written = WriteBatch(pages, places, expired);
  EndBusy(expired);
  KVTIER_RETURN_IF_ERROR(written);
  KVTIER_SYNC_POINT("store.pages.after_write");
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < pages.size(); ++i) Publish(pages[i]->name, places[i]);
  return absl::OkStatus();
}

std::vector<absl::Status> RocksDbPageTier::Put(std::span<const Write> pages) {
  std::vector<absl::Status> statuses(pages.size());
  std::vector<size_t> wanted;  // Indices of what is to be written, each name once.
  std::map<PageName, PageDigest> first_of;
  {
    MutexLock lock(&mutex_);
    const auto is_busy = [&](const Write& page) {
      mutex_.AssertHeld();
      return busy_.contains(page.name);
    };
    while (std::ranges::any_of(pages, is_busy)) changed_.Wait(&mutex_);
    for (size_t i = 0; i < pages.size(); ++i) {
      const Write& page = pages[i];
      const PageDigest digest{static_cast<uint32_t>(page.bytes.size()), page.crc32c};
      const auto there = places_.find(page.name);
      const auto [first, is_first] =
          first_of.emplace(page.name, there != places_.end() ? there->second.digest : digest);
      if (first->second != digest) {
        statuses[i] = absl::AlreadyExistsError("other bytes are stored under this key, and stay");
      } else if (ChargeOf(page.bytes.size()) > shares_.write_buffer) {
        first_of.erase(first);
        // Not RESOURCE_EXHAUSTED: waiting does not help.
        statuses[i] = absl::InvalidArgumentError(absl::StrCat(
            "a page of ", page.bytes.size(), " bytes; with page_disk_mib of ",
            options_.budget_bytes, " bytes and what page_host_mib leaves for writing ",
            "them the largest on disk is ", shares_.write_buffer - kPageDiskOverheadBytes));
      } else if (is_first && there == places_.end()) {
        wanted.push_back(i);
        busy_.insert(page.name);
      }
    }
  }
  for (size_t begin = 0; begin < wanted.size();) {
    std::vector<const Write*> some;
    uint64_t bytes = 0;
    size_t end = begin;
    for (; end < wanted.size(); ++end) {
      bytes += ChargeOf(pages[wanted[end]].bytes.size());
      if (end > begin && bytes > shares_.write_buffer) break;
      some.push_back(&pages[wanted[end]]);
    }
    const absl::Status put = PutSome(some);
    // Repetitions of a name inside the batch share what became of it.
    if (!put.ok()) {
      for (size_t i = 0; i < pages.size(); ++i) {
        const bool is_of_these =
            std::ranges::any_of(some, [&](const Write* one) { return one->name == pages[i].name; });
        if (is_of_these && statuses[i].ok()) statuses[i] = put;
      }
    }
    begin = end;
  }
  std::vector<PageName> names;
  for (const size_t i : wanted) names.push_back(pages[i].name);
  EndBusy(names);
  return statuses;
}

absl::Status RocksDbPageTier::Remove(std::span<const PageName> names) {
  const std::set<PageName> once(names.begin(), names.end());
  const std::vector<PageName> unique(once.begin(), once.end());
  {
    MutexLock lock(&mutex_);
    const auto is_busy = [&](const PageName& name) {
      mutex_.AssertHeld();
      return busy_.contains(name);
    };
    while (std::ranges::any_of(unique, is_busy)) changed_.Wait(&mutex_);
    busy_.insert(unique.begin(), unique.end());
  }
  const absl::Status removed = WriteBatch({}, {}, unique);
  if (removed.ok()) {
    MutexLock lock(&mutex_);
    for (const PageName& name : unique) Forget(name, std::nullopt);
  }
  EndBusy(unique);
  return removed;
}

// --- Reading -------------------------------------------------------------------------------------

absl::StatusOr<std::string> RocksDbPageTier::Get(const PageName& name) {
  Place place;
  {
    MutexLock lock(&mutex_);
    const auto found = places_.find(name);
    if (found == places_.end()) return absl::NotFoundError("");
    place = found->second;
  }
  std::string bytes;
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // Ours covers the page, and the hardware computes it.
  bool is_file_gone = false;
  const absl::Status read = [&]() -> absl::Status {
    const RocksDbHandle::Access access(&handle_);
    KVTIER_RETURN_IF_ERROR(access.status());
    return Rocks("read a page", [&] {
      const rocksdb::Status status =
          access->db->Get(options, PagesOf(*access), PositionKey(place.position), &bytes);
      is_file_gone = status.IsPathNotFound();
      return status;
    });
  }();
  const bool is_intact = read.ok() && bytes.size() == place.digest.bytes &&
                         ComputeCrc32c(AsBytes(bytes)) == place.digest.crc32c;
  if (is_intact) return bytes;
  if (!read.ok() && !absl::IsNotFound(read) && !absl::IsDataLoss(read) && !is_file_gone) {
    return read;
  }
  bool is_ours = false;  // To remove; somebody else may be at it.
  {
    MutexLock lock(&mutex_);
    // Gone while we read: a miss, whatever we read.
    if (!Forget(name, place.position)) return absl::NotFoundError("");
    if (absl::IsNotFound(read) && !is_file_gone) {  // Dropped with its file: no damage.
      ++evicted_;
      PutInDoubt(name);
      return absl::NotFoundError("");
    }
    is_ours = busy_.insert(name).second;
  }
  const PageName names[] = {name};
  const absl::Status removed = is_ours ? WriteBatch({}, {}, names) : absl::OkStatus();
  if (is_ours) EndBusy(names);
  if (!removed.ok()) KVTIER_LOG(WARNING) << "a damaged page comes back: " << removed.message();
  return absl::DataLossError(absl::StrCat("page ", name.key.ToHex(), " fails its CRC32C on disk"));
}

}  // namespace

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
