// Pages in host memory: a bounded map that gives up what was not used for longest; where a tenant
// has a quota, it gives up its own. The first page of a name stays. Thread-safe; never waits for
// anything but its locks.
#ifndef KVTIER_STORE_PAGE_CACHE_H_
#define KVTIER_STORE_PAGE_CACHE_H_

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "store/page.h"
#include "store/tenant_ledger.h"

namespace kvtier {

class PageCache {
 public:
  // `charge_bytes` is what a page costs beside its bytes. REQUIRES: shards > 0.
  PageCache(uint64_t budget_bytes, uint32_t shards, uint64_t charge_bytes, TenantQuotas quotas);

  // Null: not here. The page counts as used.
  PageRef Get(const TenantId& tenant, const PageKey& key);
  bool Contains(const TenantId& tenant, const PageKey& key) const;

  struct Inserted {
    PageRef page;  // What is here now: the new one, or the one that was.
    bool is_new = false;
  };
  // Gives up others where there is no room. Takes `*bytes` if it returns a new page.
  // RESOURCE_EXHAUSTED: larger than the budget or the tenant's quota, or all else (of the tenant)
  // is being read now.
  // ABORTED: Removals of the key is not `unless_beyond` any more. Who reads a page somewhere else,
  // to insert it, asks for it before: what is removed meanwhile must not come back.
  absl::StatusOr<Inserted> Insert(const PageName& name, Crc32c crc32c, std::string* bytes,
                                  std::optional<uint64_t> unless_beyond = std::nullopt);
  // Rises with each Remove of the key, and of others.
  uint64_t Removals(const PageKey& key) const;
  // Whether it was here.
  bool Remove(const TenantId& tenant, const PageKey& key);

  uint64_t pages() const { return pages_.load(std::memory_order_relaxed); }
  uint64_t bytes() const { return account_->bytes.load(std::memory_order_relaxed); }
  uint64_t budget_bytes() const { return budget_bytes_; }
  uint64_t evicted() const { return evicted_.load(std::memory_order_relaxed); }
  uint64_t quota_evicted() const { return quota_evicted_.load(std::memory_order_relaxed); }
  uint64_t quota_refused() const { return quota_refused_.load(std::memory_order_relaxed); }
  // `objects` are pages, `resident_bytes` what they are charged; those being read are included.
  TenantUse UseOf(const TenantId& tenant) const;

 private:
  using OwnOrder = std::list<PageKey>;  // Of one tenant, least recently used first.
  struct Entry {
    PageName name;
    PageRef page;
    OwnOrder* own = nullptr;  // Null: the tenant has no quota.
    OwnOrder::iterator own_at = {};
  };
  using List = std::list<Entry>;  // Least recently used first.
  struct View {                   // Of a name.
    absl::string_view tenant;
    absl::string_view key;
  };
  static View ViewOf(const View& view) { return view; }
  static View ViewOf(const List::iterator& entry) {
    return {entry->name.tenant.name(), entry->name.key.AsStringView()};
  }
  struct HashOf {
    using is_transparent = void;
    template <typename T>
    size_t operator()(const T& name) const {
      const View view = ViewOf(name);
      return absl::HashOf(view.tenant, view.key);
    }
  };
  struct Equal {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return ViewOf(a).key == ViewOf(b).key && ViewOf(a).tenant == ViewOf(b).tenant;
    }
  };
  struct Shard {
    mutable Mutex mutex;
    List order ABSL_GUARDED_BY(mutex);
    absl::flat_hash_set<List::iterator, HashOf, Equal> entries ABSL_GUARDED_BY(mutex);
    uint64_t removals ABSL_GUARDED_BY(mutex) = 0;
    // Of tenants with a quota; none is empty.
    absl::flat_hash_map<TenantId, std::unique_ptr<OwnOrder>> own ABSL_GUARDED_BY(mutex);
  };
  // What is charged. Shared with the pages, which may be read when the cache is gone.
  struct Account {
    explicit Account(TenantQuotas quotas) : ledger(std::move(quotas), /*pinned_bytes_max=*/0) {}
    void Release(const TenantId& tenant, uint64_t charge) ABSL_LOCKS_EXCLUDED(mutex);
    std::atomic<uint64_t> bytes{0};
    Mutex mutex;
    TenantLedger ledger ABSL_GUARDED_BY(mutex);
  };

  static View ViewOf(const TenantId& tenant, const PageKey& key) {
    return {tenant.name(), key.AsStringView()};
  }
  Shard& ShardOf(const PageKey& key) const;
  bool Charge(uint64_t bytes);
  // Room for `bytes`, charged.
  absl::Status MakeRoom(uint64_t bytes);
  // The same in the tenant's quota.
  absl::Status MakeRoomInQuota(const TenantId& tenant, uint64_t bytes);
  // Whether one was given up; otherwise everything in this shard (of the tenant) is being read.
  bool EvictFrom(Shard& shard);
  bool EvictOwn(Shard& shard, const TenantId& tenant);
  // Takes an entry out; its page is to be freed after the lock.
  PageRef Unlink(Shard& shard, List::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mutex);

  const uint64_t budget_bytes_;
  const uint64_t charge_bytes_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint32_t> next_shard_{0};  // To evict from.
  const TenantQuotas quotas_;
  const std::shared_ptr<Account> account_;
  std::atomic<uint64_t> pages_{0};
  std::atomic<uint64_t> evicted_{0};
  std::atomic<uint64_t> quota_evicted_{0};
  std::atomic<uint64_t> quota_refused_{0};
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PAGE_CACHE_H_
