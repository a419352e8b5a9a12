// The tier of store/rocksdb_page_tier.h. Private to the files that implement it:
// rocksdb_page_tier_open.cc (start-up) and rocksdb_page_tier.cc (pages in, pages out).
#ifndef KVTIER_STORE_ROCKSDB_PAGE_TIER_IMPL_H_
#define KVTIER_STORE_ROCKSDB_PAGE_TIER_IMPL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "kvcache/ids.h"
#include "store/page.h"
#include "store/page_disk_format.h"
#include "store/page_tier.h"
#include "store/rocksdb_handle.h"
#include "store/rocksdb_page_tier.h"

namespace kvtier {

// How the budget is spent. In 60ths (so that 1 GiB has room for the largest page), beside the
// window: the write-ahead log has up to 3 (RocksDB flushes above 2, and a batch is at most 1), the
// newest file up to 2 before the oldest goes, the names 1, files that wait for their removal on a
// busy machine 4; and the files hold 3 more than the window, because whole files go. Two lists of
// files (RocksDB's MANIFEST; two exist while a new one begins) come on top: less than a 60th.
struct RocksDbPageShares {
  // REQUIRES: `budget` is at least kPageDiskBudgetMin, or nothing is opened with them.
  RocksDbPageShares(uint64_t budget, uint64_t memory);

  // While there are files as large as `largest`, of an earlier start with a larger write buffer.
  uint64_t WindowWith(uint64_t largest) const;

  uint64_t write_buffer;
  uint64_t list;    // Of the list of files, before a new one begins.
  uint64_t files;   // Of pages, before RocksDB drops the oldest.
  uint64_t window;  // Positions that are still found.
};

// Families as OpenDatabase asks for them.
inline rocksdb::ColumnFamilyHandle* PagesOf(const OpenRocksDb& opened) {
  return opened.families[1];
}
inline rocksdb::ColumnFamilyHandle* NamesOf(const OpenRocksDb& opened) {
  return opened.families[2];
}

class RocksDbPageTier final : public PageTier {
 public:
  explicit RocksDbPageTier(const RocksDbPageTierOptions& options);

  absl::Status Open();

  std::vector<absl::Status> Put(std::span<const Write> pages) override;
  absl::StatusOr<std::string> Get(const PageName& name) override;
  std::optional<PageDigest> Find(const PageName& name) override;
  absl::Status Remove(std::span<const PageName> names) override;
  PageTierUsage Usage() override;
  uint64_t BytesOf(const TenantId& tenant) override;
  uint64_t ChargeOf(uint64_t bytes) const override { return bytes + kPageDiskOverheadBytes; }

 private:
  using Place = page_disk_format::Place;

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
  rocksdb::Env* const env_;  // Not null.
  const RocksDbPageShares shares_;
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

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_PAGE_TIER_IMPL_H_
