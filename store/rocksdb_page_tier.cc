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
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"
#include "store/rocksdb_database.h"
#include "store/rocksdb_status.h"

namespace kvtier {
namespace {

constexpr char kFormat[] = "kvtier pages format 1\n";

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }

std::string PositionKey(uint64_t position) {
  std::string key;
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(position >> shift));
  return key;
}

std::string NameKey(const PageName& name) {
  return absl::StrCat(name.tenant.name(), absl::string_view("\0", 1), name.key.AsStringView());
}

std::optional<PageName> ParseNameKey(absl::string_view key) {
  if (key.size() < PageKey::kSize + 1) return std::nullopt;
  const size_t tenant_bytes = key.size() - PageKey::kSize - 1;
  if (key[tenant_bytes] != '\0') return std::nullopt;
  absl::StatusOr<TenantId> tenant = TenantId::FromString(key.substr(0, tenant_bytes));
  absl::StatusOr<PageKey> page = PageKey::FromBytes(key.substr(tenant_bytes + 1));
  if (!tenant.ok() || !page.ok()) return std::nullopt;
  return PageName{*std::move(tenant), *page};
}

struct Place {
  uint64_t position = 0;
  PageDigest digest;
};

std::string EncodePlace(absl::string_view name_key, const Place& place) {
  std::string value;
  ByteWriter writer(&value);
  writer.WriteU64(place.position);
  writer.WriteU32(place.digest.bytes);
  writer.WriteU32(place.digest.crc32c.value());
  writer.WriteU32(ExtendCrc32c(ComputeCrc32c(AsBytes(name_key)), AsBytes(value)).value());
  return value;
}

std::optional<Place> DecodePlace(absl::string_view name_key, absl::string_view value) {
  constexpr size_t kBody = 16;
  if (value.size() != kBody + sizeof(uint32_t)) return std::nullopt;
  const std::byte* const at = AsBytes(value).data();
  const Crc32c crc =
      ExtendCrc32c(ComputeCrc32c(AsBytes(name_key)), AsBytes(value.substr(0, kBody)));
  if (crc.value() != LoadLittleEndian<uint32_t>(at + kBody)) return std::nullopt;
  return Place{.position = LoadLittleEndian<uint64_t>(at),
               .digest = {.bytes = LoadLittleEndian<uint32_t>(at + 8),
                          .crc32c = Crc32c(LoadLittleEndian<uint32_t>(at + 12))}};
}

// How the budget is spent. In 64ths, beside the window: the write-ahead log has up to 3 (RocksDB
// flushes above 2, and a batch is at most 1), the newest file up to 2 before the oldest goes, the
// names 1, files that wait for their removal on a busy machine 2; and the files hold 3 more than
// the window, because whole files go.
struct Shares {
  explicit Shares(uint64_t budget)
      : write_buffer(std::min(budget / 64, uint64_t{64} << 20)),
        files(budget - 8 * write_buffer),
        window(budget - 11 * write_buffer) {}
  uint64_t write_buffer;
  uint64_t files;   // Of pages, before RocksDB drops the oldest.
  uint64_t window;  // Positions that are still found.
};

class RocksDbPageTier final : public PageTier {
 public:
  explicit RocksDbPageTier(const RocksDbPageTierOptions& options)
      : options_(options),
        env_(options.env != nullptr ? options.env : rocksdb::Env::Default()),
        shares_(options.budget_bytes) {}

  absl::Status Open();

  std::vector<absl::Status> Put(std::span<const Write> pages) override;
  absl::StatusOr<std::string> Get(const PageName& name) override;
  std::optional<PageDigest> Find(const PageName& name) override;
  absl::Status Remove(std::span<const PageName> names) override;
  PageTierUsage Usage() override;
  uint64_t BytesOf(const TenantId& tenant) override;
  uint64_t ChargeOf(uint64_t bytes) const override { return bytes + kPageDiskOverheadBytes; }

 private:
  struct Handle;  // An open rocksdb::DB with its column families.
  class Access;   // Keeps the handle from being closed.

  absl::Status CheckFormat();
  absl::StatusOr<std::unique_ptr<Handle>> OpenHandle(bool read_only);
  // After a failed write RocksDB may refuse every other one: opens it anew. If that fails too (the
  // disk is still full), for reading only.
  absl::Status EnsureWritable() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status ReadNames();

  // Names that have left the window: not found any more, and busy until EndBusy.
  std::vector<PageName> TakeExpired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(const PageName& name, const Place& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Forget(const PageName& name, const std::optional<uint64_t>& position)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndBusy(std::span<const PageName> names) ABSL_LOCKS_EXCLUDED(mutex_);
  // Durable, all or nothing. `pages` at the positions of `places`.
  absl::Status WriteBatch(std::span<const Write* const> pages, std::span<const Place> places,
                          std::span<const PageName> gone);
  // Those of one batch that are to be written: at most a write buffer of them.
  absl::Status PutSome(std::span<const Write* const> pages);

  const RocksDbPageTierOptions options_;
  rocksdb::Env* const env_;
  const Shares shares_;

  Mutex mutex_;
  CondVar changed_;  // Something is not busy any more, or the handle is not.
  std::unique_ptr<Handle> handle_ ABSL_GUARDED_BY(mutex_);  // Null only while reopening failed.
  int users_ ABSL_GUARDED_BY(mutex_) = 0;                   // Accesses that use the handle.
  bool reopening_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_failed_ ABSL_GUARDED_BY(mutex_) = false;  // A write has, since the last (re)open.
  absl::flat_hash_map<PageName, Place> places_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, PageName> order_ ABSL_GUARDED_BY(mutex_);  // By position.
  // Being written or removed: who wants one of them waits, so that the first one's bytes stay.
  absl::flat_hash_set<PageName> busy_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_position_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // Charged, of places_.
  absl::flat_hash_map<TenantId, uint64_t> bytes_of_ ABSL_GUARDED_BY(mutex_);  // None is 0.
  uint64_t evicted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t records_lost_ ABSL_GUARDED_BY(mutex_) = 0;
};

// --- Opening -------------------------------------------------------------------------------------

struct RocksDbPageTier::Handle {
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> families;  // Default, pages, names.
  bool read_only = false;

  rocksdb::ColumnFamilyHandle* pages() const { return families[1]; }
  rocksdb::ColumnFamilyHandle* names() const { return families[2]; }

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
class RocksDbPageTier::Access {
 public:
  explicit Access(RocksDbPageTier* tier) : tier_(tier) {
    MutexLock lock(&tier->mutex_);
    while (tier->reopening_) tier->changed_.Wait(&tier->mutex_);
    handle_ = tier->handle_.get();
    if (handle_ != nullptr) ++tier->users_;
  }
  ~Access() {
    if (handle_ == nullptr) return;
    MutexLock lock(&tier_->mutex_);
    if (--tier_->users_ == 0) tier_->changed_.SignalAll();
  }
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

  absl::Status status() const {
    return handle_ != nullptr ? absl::OkStatus()
                              : absl::UnavailableError("the pages could not be opened again");
  }
  absl::Status writable() const {
    KVTIER_RETURN_IF_ERROR(status());
    return !handle_->read_only ? absl::OkStatus()
                               : absl::UnavailableError("the pages are open for reading only");
  }
  Handle* operator->() const { return handle_; }

 private:
  RocksDbPageTier* const tier_;
  Handle* handle_;
};

absl::Status RocksDbPageTier::Open() {
  if (options_.budget_bytes < kPageDiskBudgetMin) {
    return absl::InvalidArgumentError(absl::StrCat("a disk budget for pages of ",
                                                   options_.budget_bytes, " bytes; the least is ",
                                                   kPageDiskBudgetMin));
  }
  KVTIER_RETURN_IF_ERROR(rocksdb_files::CreateFolder(env_, options_.folder));
  KVTIER_RETURN_IF_ERROR(CheckFormat());
  // By us, because RocksDB does not sync the folder that names it.
  KVTIER_RETURN_IF_ERROR(rocksdb_files::CreateFolder(env_, options_.folder + "/db"));
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<Handle> handle, OpenHandle(/*read_only=*/false));
  {
    MutexLock lock(&mutex_);
    handle_ = std::move(handle);
  }
  return ReadNames();
}

absl::Status RocksDbPageTier::CheckFormat() {
  const std::string file = options_.folder + "/FORMAT";
  KVTIER_ASSIGN_OR_RETURN(const bool exists, rocksdb_files::Exists(env_, file));
  if (!exists) return rocksdb_files::WriteAtomically(env_, options_.folder, "FORMAT", kFormat);
  KVTIER_ASSIGN_OR_RETURN(const std::string text, rocksdb_files::Read(env_, file));
  if (text != kFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.folder, ": pages of another format: \"",
                     absl::string_view(text).substr(0, text.find('\n')), "\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RocksDbPageTier::Handle>> RocksDbPageTier::OpenHandle(
    bool read_only) {
  rocksdb::DBOptions options;
  options.env = env_;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A damaged log record costs the pages in it, not all that came after.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options.max_open_files = -1;  // FIFO compaction wants it. Each file has a 64th of the budget.
  options.max_total_wal_size = 2 * shares_.write_buffer;
  options.keep_log_file_num = 4;
  options.max_log_file_size = 1 << 20;
  options.info_log_level = rocksdb::WARN_LEVEL;
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
      {rocksdb::kDefaultColumnFamilyName, names}, {"pages", pages}, {"names", names}};
  const std::string folder = options_.folder + "/db";
  auto handle = std::make_unique<Handle>();
  handle->read_only = read_only;
  const absl::Status opened = Rocks(absl::StrCat("open ", folder), [&] {
    rocksdb::DB* db = nullptr;
    const rocksdb::Status status =
        read_only ? rocksdb::DB::OpenForReadOnly(options, folder, families, &handle->families, &db)
                  : rocksdb::DB::Open(options, folder, families, &handle->families, &db);
    handle->db.reset(db);
    return status;
  });
  if (absl::StrContains(opened.message(), "/LOCK")) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, " is in use by another process: ", opened.message()));
  }
  KVTIER_RETURN_IF_ERROR(opened);
  KVTIER_CHECK_GE(handle->db->GetOptions(handle->families[1]).ttl, kNever)
      << "RocksDB would remove pages by age";
  return handle;
}

absl::Status RocksDbPageTier::EnsureWritable() {
  std::unique_ptr<Handle> old;
  {
    MutexLock lock(&mutex_);
    while (reopening_) changed_.Wait(&mutex_);
    if (!has_failed_ && handle_ != nullptr) return absl::OkStatus();
    reopening_ = true;
    while (users_ > 0) changed_.Wait(&mutex_);
    old = std::move(handle_);
  }
  old.reset();  // RocksDB holds a lock on the folder.
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

absl::Status RocksDbPageTier::ReadNames() {
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.status());
  MutexLock lock(&mutex_);
  const absl::Status read = Rocks("read names", [&] {
    const std::unique_ptr<rocksdb::Iterator> records(
        access->db->NewIterator(rocksdb::ReadOptions(), access->names()));
    for (records->SeekToFirst(); records->Valid(); records->Next()) {
      mutex_.AssertHeld();
      const absl::string_view key(records->key().data(), records->key().size());
      const absl::string_view value(records->value().data(), records->value().size());
      std::optional<PageName> name = ParseNameKey(key);
      const std::optional<Place> place = DecodePlace(key, value);
      if (!name.has_value() || !place.has_value()) {
        ++records_lost_;
        continue;
      }
      Publish(*name, *place);
      next_position_ = std::max(next_position_, place->position + ChargeOf(place->digest.bytes));
    }
    return records->status();
  });
  if (absl::IsDataLoss(read)) {
    // Pages behind the damage are misses from now on; the others are served.
    KVTIER_LOG(ERROR) << options_.folder << ": " << read.message();
    ++records_lost_;
  } else {
    KVTIER_RETURN_IF_ERROR(read);
  }
  const size_t expired = TakeExpired().size();  // After a start with a smaller budget.
  busy_.clear();
  KVTIER_LOG(INFO) << "recovered " << places_.size() << " pages, " << expired
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

std::vector<PageName> RocksDbPageTier::TakeExpired() {
  std::vector<PageName> expired;
  while (!order_.empty() && next_position_ - order_.begin()->first > shares_.window) {
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
          .evicted = evicted_,
          .records_lost = records_lost_};
}

uint64_t RocksDbPageTier::BytesOf(const TenantId& tenant) {
  MutexLock lock(&mutex_);
  const auto found = bytes_of_.find(tenant);
  return found == bytes_of_.end() ? 0 : found->second;
}

// --- Writing -------------------------------------------------------------------------------------

absl::Status RocksDbPageTier::WriteBatch(std::span<const Write* const> pages,
                                         std::span<const Place> places,
                                         std::span<const PageName> gone) {
  KVTIER_RETURN_IF_ERROR(EnsureWritable());
  const Access access(this);
  KVTIER_RETURN_IF_ERROR(access.writable());
  const absl::Status written = Rocks("write pages", [&] {
    rocksdb::WriteBatch batch;
    rocksdb::Status status;
    // First, so that a page that went and is put again is there afterwards.
    for (const PageName& name : gone) {
      if (status.ok()) status = batch.Delete(access->names(), NameKey(name));
    }
    for (size_t i = 0; i < pages.size(); ++i) {
      const std::string name_key = NameKey(pages[i]->name);
      if (status.ok()) {
        status =
            batch.Put(access->pages(), PositionKey(places[i].position), ToSlice(pages[i]->bytes));
      }
      if (status.ok())
        status = batch.Put(access->names(), name_key, EncodePlace(name_key, places[i]));
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    return status.ok() ? access->db->Write(options, &batch) : status;
  });
  if (!written.ok()) {
    KVTIER_LOG(ERROR) << options_.folder << ": " << written.message();
    MutexLock lock(&mutex_);
    has_failed_ = true;
  }
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
        statuses[i] = absl::ResourceExhaustedError(
            absl::StrCat("a page of ", page.bytes.size(), " bytes; with page_disk_mib of ",
                         options_.budget_bytes, " bytes the largest is ",
                         shares_.write_buffer - kPageDiskOverheadBytes));
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
  const absl::Status read = [&]() -> absl::Status {
    const Access access(this);
    KVTIER_RETURN_IF_ERROR(access.status());
    return Rocks("read a page", [&] {
      return access->db->Get(options, access->pages(), PositionKey(place.position), &bytes);
    });
  }();
  const bool is_intact = read.ok() && bytes.size() == place.digest.bytes &&
                         ComputeCrc32c(AsBytes(bytes)) == place.digest.crc32c;
  if (is_intact) return bytes;
  if (!read.ok() && !absl::IsNotFound(read) && !absl::IsDataLoss(read)) return read;
  bool is_ours = false;  // To remove; somebody else may be at it.
  {
    MutexLock lock(&mutex_);
    // Gone while we read: a miss, whatever we read.
    if (!Forget(name, place.position)) return absl::NotFoundError("");
    is_ours = busy_.insert(name).second;
  }
  const PageName names[] = {name};
  const absl::Status removed = is_ours ? WriteBatch({}, {}, names) : absl::OkStatus();
  if (is_ours) EndBusy(names);
  if (!removed.ok()) KVTIER_LOG(WARNING) << "a damaged page comes back: " << removed.message();
  return absl::DataLossError(absl::StrCat("page ", name.key.ToHex(), " fails its CRC32C on disk"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PageTier>> OpenRocksDbPageTier(
    const RocksDbPageTierOptions& options) {
  auto tier = std::make_unique<RocksDbPageTier>(options);
  KVTIER_RETURN_IF_ERROR(tier->Open());
  return tier;
}

}  // namespace kvtier
