#include "store/page_cache.h"

#include <iterator>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// Pages at the cold end of a shard that are looked at before it counts as being read as a whole.
constexpr int kPinnedMax = 64;

}  // namespace

PageCache::PageCache(uint64_t budget_bytes, uint32_t shards, uint64_t charge_bytes,
                     TenantQuotas quotas)
    : budget_bytes_(budget_bytes),
      charge_bytes_(charge_bytes),
      quotas_(quotas),
      account_(std::make_shared<Account>(std::move(quotas))) {
  KVTIER_CHECK_GT(shards, 0u);
  for (uint32_t i = 0; i < shards; ++i) shards_.push_back(std::make_unique<Shard>());
}

void PageCache::Account::Release(const TenantId& tenant, uint64_t charge) {
  bytes.fetch_sub(charge);
  MutexLock lock(&mutex);
  ledger.Subtract(tenant, {.objects = 1, .resident_bytes = charge});
}

PageCache::Shard& PageCache::ShardOf(const PageKey& key) const {
  return *shards_[absl::HashOf(key) % shards_.size()];
}

PageRef PageCache::Get(const TenantId& tenant, const PageKey& key) {
  Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  const auto found = shard.entries.find(ViewOf(tenant, key));
  if (found == shard.entries.end()) return nullptr;
  Entry& entry = **found;
  shard.order.splice(shard.order.end(), shard.order, *found);
  if (entry.own != nullptr) entry.own->splice(entry.own->end(), *entry.own, entry.own_at);
  return entry.page;
}

bool PageCache::Contains(const TenantId& tenant, const PageKey& key) const {
  const Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  return shard.entries.contains(ViewOf(tenant, key));
}

bool PageCache::Charge(uint64_t bytes) {
  uint64_t used = account_->bytes.load(std::memory_order_relaxed);
  do {
    if (used > budget_bytes_ || bytes > budget_bytes_ - used) return false;
  } while (!account_->bytes.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

PageRef PageCache::Unlink(Shard& shard, List::iterator entry) {
  PageRef page = std::move(entry->page);
  shard.entries.erase(entry);
  if (entry->own != nullptr) {
    entry->own->erase(entry->own_at);
    if (entry->own->empty()) shard.own.erase(entry->name.tenant);
  }
  shard.order.erase(entry);
  pages_.fetch_sub(1, std::memory_order_relaxed);
  return page;
}

bool PageCache::EvictFrom(Shard& shard) {
  PageRef page;  // Freed after the lock.
  MutexLock lock(&shard.mutex);
  auto victim = shard.order.begin();
  for (int i = 0; victim != shard.order.end(); ++victim, ++i) {
    if (i == kPinnedMax) return false;
    // Others get a reference under this lock only: nobody can begin to read it now.
    if (victim->page.use_count() == 1) break;
  }
  if (victim == shard.order.end()) return false;
  page = Unlink(shard, victim);
  evicted_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool PageCache::EvictOwn(Shard& shard, const TenantId& tenant) {
  PageRef page;  // Freed after the lock.
  MutexLock lock(&shard.mutex);
  const auto own = shard.own.find(tenant);
  if (own == shard.own.end()) return false;
  int looked_at = 0;
  for (const PageKey& key : *own->second) {
    if (++looked_at > kPinnedMax) return false;
    const List::iterator entry = *shard.entries.find(ViewOf(tenant, key));
    if (entry->page.use_count() > 1) continue;  // As above.
    page = Unlink(shard, entry);
    evicted_.fetch_add(1, std::memory_order_relaxed);
    quota_evicted_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  return false;
}

absl::Status PageCache::MakeRoomInQuota(const TenantId& tenant, uint64_t bytes) {
  size_t turn = next_shard_.fetch_add(1, std::memory_order_relaxed);
  for (size_t fruitless = 0;; ++turn) {
    {
      MutexLock lock(&account_->mutex);
      absl::StatusOr<uint64_t> excess = account_->ledger.ExcessBytes(tenant, bytes, 0);
      // Others of the tenant may take the room that we make; a round without any ends it.
      if (excess.ok() && *excess > 0 && fruitless == shards_.size()) {
        excess = account_->ledger.QuotaError(tenant, bytes);
      }
      if (!excess.ok()) {
        quota_refused_.fetch_add(1, std::memory_order_relaxed);
        return excess.status();
      }
      if (*excess == 0) {
        account_->ledger.Add(tenant, {.objects = 1, .resident_bytes = bytes});
        return absl::OkStatus();
      }
    }
    fruitless = EvictOwn(*shards_[turn % shards_.size()], tenant) ? 0 : fruitless + 1;
  }
}

TenantUse PageCache::UseOf(const TenantId& tenant) const {
  MutexLock lock(&account_->mutex);
  return account_->ledger.UseOf(tenant);
}

absl::Status PageCache::MakeRoom(uint64_t bytes) {
  if (bytes > budget_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a page that costs ", bytes, " bytes; the budget (page_host_mib) is ", budget_bytes_));
  }
  size_t turn = next_shard_.fetch_add(1, std::memory_order_relaxed);
  for (size_t fruitless = 0; !Charge(bytes); ++turn) {
    // Others may take the room that we make; a round without any ends it.
    fruitless = EvictFrom(*shards_[turn % shards_.size()]) ? 0 : fruitless + 1;
    if (fruitless == shards_.size()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "page memory budget (page_host_mib) of ", budget_bytes_, " bytes: all of ",
          account_->bytes.load(), " in use is being read now, ", bytes, " more needed"));
    }
  }
  return absl::OkStatus();
}

uint64_t PageCache::Removals(const PageKey& key) const {
  const Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  return shard.removals;
}

absl::StatusOr<PageCache::Inserted> PageCache::Insert(const PageName& name, Crc32c crc32c,
                                                      std::string* bytes,
                                                      std::optional<uint64_t> unless_beyond) {
  if (PageRef there = Get(name.tenant, name.key)) return Inserted{std::move(there), false};
  const uint64_t charge = bytes->size() + charge_bytes_;
  KVTIER_RETURN_IF_ERROR(MakeRoomInQuota(name.tenant, charge));
  if (const absl::Status room = MakeRoom(charge); !room.ok()) {
    MutexLock lock(&account_->mutex);
    account_->ledger.Subtract(name.tenant, {.objects = 1, .resident_bytes = charge});
    return room;
  }
  Shard& shard = ShardOf(name.key);
  MutexLock lock(&shard.mutex);
  const auto found = shard.entries.find(ViewOf(name.tenant, name.key));
  if (found != shard.entries.end()) {  // Put meanwhile.
    account_->Release(name.tenant, charge);
    return Inserted{(*found)->page, false};
  }
  if (unless_beyond.has_value() && shard.removals != *unless_beyond) {
    account_->Release(name.tenant, charge);
    return absl::AbortedError("a page has been removed meanwhile");
  }
  PageRef page = std::make_shared<const Page>(
      std::move(*bytes), crc32c,
      [account = account_, tenant = name.tenant, charge] { account->Release(tenant, charge); });
  shard.order.push_back(Entry{.name = name, .page = page});
  const List::iterator entry = std::prev(shard.order.end());
  shard.entries.insert(entry);
  if (quotas_.Of(name.tenant) != 0) {
    std::unique_ptr<OwnOrder>& own = shard.own[name.tenant];
    if (own == nullptr) own = std::make_unique<OwnOrder>();
    entry->own = own.get();
    entry->own_at = own->insert(own->end(), name.key);
  }
  pages_.fetch_add(1, std::memory_order_relaxed);
  return Inserted{std::move(page), true};
}

bool PageCache::Remove(const TenantId& tenant, const PageKey& key) {
  PageRef page;  // Freed after the lock.
  Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  ++shard.removals;
  const auto found = shard.entries.find(ViewOf(tenant, key));
  if (found == shard.entries.end()) return false;
  page = Unlink(shard, *found);
  return true;
}

}  // namespace kvtier
