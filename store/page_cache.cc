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

PageCache::PageCache(uint64_t budget_bytes, uint32_t shards, uint64_t charge_bytes)
    : budget_bytes_(budget_bytes),
      charge_bytes_(charge_bytes),
      account_(std::make_shared<std::atomic<uint64_t>>(0)) {
  KVTIER_CHECK_GT(shards, 0u);
  for (uint32_t i = 0; i < shards; ++i) shards_.push_back(std::make_unique<Shard>());
}

PageCache::Shard& PageCache::ShardOf(const PageKey& key) const {
  return *shards_[absl::HashOf(key) % shards_.size()];
}

PageRef PageCache::Get(const TenantId& tenant, const PageKey& key) {
  Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  const auto found = shard.entries.find(ViewOf(tenant, key));
  if (found == shard.entries.end()) return nullptr;
  shard.order.splice(shard.order.end(), shard.order, *found);
  return (*found)->page;
}

bool PageCache::Contains(const TenantId& tenant, const PageKey& key) const {
  const Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  return shard.entries.contains(ViewOf(tenant, key));
}

bool PageCache::Charge(uint64_t bytes) {
  uint64_t used = account_->load(std::memory_order_relaxed);
  do {
    if (used > budget_bytes_ || bytes > budget_bytes_ - used) return false;
  } while (!account_->compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

uint64_t PageCache::EvictFrom(Shard& shard) {
  PageRef page;  // Freed after the lock.
  MutexLock lock(&shard.mutex);
  auto victim = shard.order.begin();
  for (int i = 0; victim != shard.order.end(); ++victim, ++i) {
    if (i == kPinnedMax) return 0;
    // Others get a reference under this lock only: nobody can begin to read it now.
    if (victim->page.use_count() == 1) break;
  }
  if (victim == shard.order.end()) return 0;
  page = std::move(victim->page);
  shard.entries.erase(victim);
  shard.order.erase(victim);
  pages_.fetch_sub(1, std::memory_order_relaxed);
  evicted_.fetch_add(1, std::memory_order_relaxed);
  return page->bytes().size() + charge_bytes_;
}

absl::Status PageCache::MakeRoom(uint64_t bytes) {
  if (bytes > budget_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a page that costs ", bytes, " bytes; the budget (page_host_mib) is ", budget_bytes_));
  }
  size_t turn = next_shard_.fetch_add(1, std::memory_order_relaxed);
  for (size_t fruitless = 0; !Charge(bytes); ++turn) {
    // Others may take the room that we make; a round without any ends it.
    fruitless = EvictFrom(*shards_[turn % shards_.size()]) > 0 ? 0 : fruitless + 1;
    if (fruitless == shards_.size()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("page memory budget (page_host_mib) of ", budget_bytes_, " bytes: all of ",
                       account_->load(), " in use is being read now, ", bytes, " more needed"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PageCache::Inserted> PageCache::Insert(const PageName& name, Crc32c crc32c,
                                                      std::string* bytes) {
  if (PageRef there = Get(name.tenant, name.key)) return Inserted{std::move(there), false};
  const uint64_t charge = bytes->size() + charge_bytes_;
  KVTIER_RETURN_IF_ERROR(MakeRoom(charge));
  Shard& shard = ShardOf(name.key);
  MutexLock lock(&shard.mutex);
  const auto found = shard.entries.find(ViewOf(name.tenant, name.key));
  if (found != shard.entries.end()) {  // Put meanwhile.
    account_->fetch_sub(charge);
    return Inserted{(*found)->page, false};
  }
  PageRef page = std::make_shared<const Page>(
      std::move(*bytes), crc32c, [account = account_, charge] { account->fetch_sub(charge); });
  shard.order.push_back(Entry{name, page});
  shard.entries.insert(std::prev(shard.order.end()));
  pages_.fetch_add(1, std::memory_order_relaxed);
  return Inserted{std::move(page), true};
}

bool PageCache::Remove(const TenantId& tenant, const PageKey& key) {
  PageRef page;  // Freed after the lock.
  Shard& shard = ShardOf(key);
  MutexLock lock(&shard.mutex);
  const auto found = shard.entries.find(ViewOf(tenant, key));
  if (found == shard.entries.end()) return false;
  const List::iterator entry = *found;
  page = std::move(entry->page);
  shard.entries.erase(found);
  shard.order.erase(entry);
  pages_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

}  // namespace kvtier
