// Opaque pages of all tenants: host memory over an optional disk. Why they share neither budget nor
// order of eviction with contexts: docs/adr/0013-prefixes-and-pages.md.
//
// Invariants:
//   1. A page never changes: the first Put of a name decides its bytes until it is gone.
//   2. What was acknowledged with kDisk is found until the disk evicts it; with kHost, until host
//      memory does. Both are counted.
//   3. Host memory holds at most its budget, pages that somebody still reads included. Those are
//      never evicted: where nothing else is left, a Put is refused.
//   4. Bytes from disk are checked before anybody sees them.
//   5. A tenant with a quota has at most that many bytes in host memory, pages that somebody reads
//      included: its own pages go for its new ones, least recently used first. It has at most as
//      many on disk (concurrent batches of one tenant may each bring the last one): there the ring
//      alone decides what goes, so DISK is refused, and the page stays in host memory.
//
// Thread-safe: any method from any thread. Locks guard memory only.
#ifndef KVTIER_STORE_PAGE_STORE_H_
#define KVTIER_STORE_PAGE_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/page.h"
#include "store/page_tier.h"
#include "store/tenant_ledger.h"
#include "store/tiered_store.h"

namespace kvtier {

// What a page in host memory costs beside its bytes: its name, its places in a hash table and two
// lists, its tenant's account, headers of the allocator. Charged against the budget.
inline constexpr uint64_t kPageOverheadBytes = 384;

struct PageStoreOptions {
  uint64_t host_budget_bytes = uint64_t{64} << 20;
  // Each has a lock and its own order of use; what is evicted is the least recently used of one of
  // them, in turn. 1 makes the order exact.
  uint32_t shards = 16;
  TenantQuotas tenant_quotas = {};
};

// What one tenant has.
struct TenantPages {
  uint64_t host_pages = 0;
  uint64_t host_bytes = 0;   // With kPageOverheadBytes each; pages being read are included.
  uint64_t disk_bytes = 0;   // As charged.
  uint64_t quota_bytes = 0;  // Of each of the two; 0: none.
};

// Counted since start, by page. Invariant: gets == host_hits + disk_hits + misses + failures.
struct PageCounters {
  std::atomic<uint64_t> gets{0}, host_hits{0}, disk_hits{0}, misses{0}, failures{0};
  std::atomic<uint64_t> stored{0};              // New ones.
  std::atomic<uint64_t> kept{0};                // Put again with the same bytes.
  std::atomic<uint64_t> conflicts{0};           // Put again with others: ALREADY_EXISTS.
  std::atomic<uint64_t> refused{0};             // Not stored, for any other reason.
  std::atomic<uint64_t> disk_quota_refused{0};  // Of those: not written for their tenant's quota.
  std::atomic<uint64_t> deleted{0};
  std::atomic<uint64_t> checksum_failures{0};
};

struct PageHostUsage {
  uint64_t pages = 0;
  uint64_t bytes = 0;  // With kPageOverheadBytes each.
  uint64_t budget_bytes = 0;
  uint64_t evicted = 0;        // Left host memory for want of room; those on disk are still there.
  uint64_t quota_evicted = 0;  // Of those: to make room in their tenant's quota.
  uint64_t quota_refused = 0;  // New pages that their tenant's quota has no room for.
};

struct PagePut {
  PageKey key;
  std::string bytes;
  std::optional<Crc32c> crc32c = std::nullopt;  // Checked when given.
};

enum class PagePlace { kNowhere, kHost, kDisk };

class PageStore {
 public:
  // `disk` may be null: host memory only.
  static std::unique_ptr<PageStore> Create(const PageStoreOptions& options,
                                           std::unique_ptr<PageTier> disk);
  virtual ~PageStore() = default;

  // One status for each page, in order; codes: pages.proto. With kHost it touches memory only.
  // REQUIRES: kDisk only if has_disk().
  virtual std::vector<absl::Status> Put(const TenantId& tenant, std::vector<PagePut> pages,
                                        Durability durability) = 0;

  // Fills `pages` (one for each key) with what is in host memory, null elsewhere. True if the disk
  // has one of the others: GetFromDisk must follow. Otherwise the others are counted as misses.
  virtual bool GetFromHost(const TenantId& tenant, std::span<const PageKey> keys,
                           std::vector<PageRef>* pages) = 0;
  // Reads those that are null, and keeps them in host memory where there is room; never more than
  // bring all of `pages` to `bytes_max`. One status for each key: OK, NOT_FOUND, DATA_LOSS,
  // UNAVAILABLE, RESOURCE_EXHAUSTED (not read: beyond bytes_max). May wait for the disk.
  virtual std::vector<absl::Status> GetFromDisk(const TenantId& tenant,
                                                std::span<const PageKey> keys, uint64_t bytes_max,
                                                std::vector<PageRef>* pages) = 0;
  // Both, one after the other.
  std::vector<absl::StatusOr<PageRef>> Get(const TenantId& tenant, std::span<const PageKey> keys);

  virtual std::vector<PagePlace> Locate(const TenantId& tenant, std::span<const PageKey> keys) = 0;
  // OK, or NOT_FOUND where there was none. May wait for the disk.
  virtual std::vector<absl::Status> Delete(const TenantId& tenant,
                                           std::span<const PageKey> keys) = 0;

  virtual bool has_disk() const = 0;
  virtual const PageCounters& counters() const = 0;
  virtual PageHostUsage host_usage() const = 0;
  virtual std::optional<PageTierUsage> disk_usage() const = 0;
  virtual TenantPages usage_of(const TenantId& tenant) const = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PAGE_STORE_H_
