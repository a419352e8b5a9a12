// Pages in host memory: a bounded map that gives up what was not used for longest. The first page
// of a name stays. Thread-safe; never waits for anything but its locks.
#ifndef KVTIER_STORE_PAGE_CACHE_H_
#define KVTIER_STORE_PAGE_CACHE_H_

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "store/page.h"

namespace kvtier {

class PageCache {
 public:
  // `charge_bytes` is what a page costs beside its bytes. REQUIRES: shards > 0.
  PageCache(uint64_t budget_bytes, uint32_t shards, uint64_t charge_bytes);

  // Null: not here. The page counts as used.
  PageRef Get(const TenantId& tenant, const PageKey& key);
  bool Contains(const TenantId& tenant, const PageKey& key) const;

  struct Inserted {
    PageRef page;  // What is here now: the new one, or the one that was.
    bool is_new = false;
  };
  // Gives up others where there is no room. Takes `*bytes` if it returns a new page.
  // RESOURCE_EXHAUSTED: larger than the budget, or all else is being read now.
  absl::StatusOr<Inserted> Insert(const PageName& name, Crc32c crc32c, std::string* bytes);
  // Whether it was here.
  bool Remove(const TenantId& tenant, const PageKey& key);

  uint64_t pages() const { return pages_.load(std::memory_order_relaxed); }
  uint64_t bytes() const { return account_->load(std::memory_order_relaxed); }
  uint64_t budget_bytes() const { return budget_bytes_; }
  uint64_t evicted() const { return evicted_.load(std::memory_order_relaxed); }

 private:
  struct Entry {
    PageName name;
    PageRef page;
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
  };

  static View ViewOf(const TenantId& tenant, const PageKey& key) {
    return {tenant.name(), key.AsStringView()};
  }
  Shard& ShardOf(const PageKey& key) const;
  bool Charge(uint64_t bytes);
  // Room for `bytes`, charged.
  absl::Status MakeRoom(uint64_t bytes);
  // Bytes that were given up; 0: everything in this shard is being read.
  uint64_t EvictFrom(Shard& shard);

  const uint64_t budget_bytes_;
  const uint64_t charge_bytes_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint32_t> next_shard_{0};  // To evict from.
  // Bytes charged. Outlives the cache while somebody reads a page of it.
  const std::shared_ptr<std::atomic<uint64_t>> account_;
  std::atomic<uint64_t> pages_{0};
  std::atomic<uint64_t> evicted_{0};
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PAGE_CACHE_H_
