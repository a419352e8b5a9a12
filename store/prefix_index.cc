#include "store/prefix_index.h"

#include <algorithm>

#include "base/log.h"

namespace kvtier {
namespace {

// Probes whose memory is on its way: enough to hide a miss of the last-level cache, few enough for
// the processor's line fill buffers.
constexpr size_t kPrefetchAhead = 10;

bool IsLonger(const PrefixMatch& a, const PrefixMatch& b) {
  return a.context_tokens != b.context_tokens ? a.context_tokens > b.context_tokens
                                              : a.upload < b.upload;
}

}  // namespace

void PrefixIndex::Insert(const TenantId& tenant, const TokenBlockHash& last_block_hash,
                         const PrefixMatch& object) {
  MutexLock lock(&mutex_);
  Objects& objects = tenants_[tenant][last_block_hash];
  const auto at = std::lower_bound(objects.begin(), objects.end(), object, IsLonger);
  KVTIER_CHECK(at == objects.end() || *at != object)
      << "upload " << object.upload.ToHex() << " is indexed already";
  objects.insert(at, object);
  ++size_;
}

void PrefixIndex::Remove(const TenantId& tenant, const TokenBlockHash& last_block_hash,
                         const PrefixMatch& object) {
  MutexLock lock(&mutex_);
  const auto table = tenants_.find(tenant);
  if (table == tenants_.end()) return;
  const auto found = table->second.find(last_block_hash);
  if (found == table->second.end()) return;
  Objects& objects = found->second;
  const auto at = std::lower_bound(objects.begin(), objects.end(), object, IsLonger);
  if (at == objects.end() || *at != object) return;
  objects.erase(at);
  --size_;
  if (objects.empty()) table->second.erase(found);
  if (table->second.empty()) tenants_.erase(table);
}

std::vector<PrefixMatch> PrefixIndex::Find(const TenantId& tenant, const PrefixQuery& query,
                                           size_t matches_max) const {
  constexpr size_t kSize = TokenBlockHash::kSize;
  KVTIER_CHECK_EQ(query.block_hashes.size() % kSize, 0u);
  const size_t blocks = query.block_hashes.size() / kSize;
  const auto hash_of = [&](size_t block) {
    return query.block_hashes.substr(block * kSize, kSize);
  };
  std::vector<PrefixMatch> matches;
  MutexLock lock(&mutex_);
  const auto found = tenants_.find(tenant);
  if (found == tenants_.end()) return matches;
  const Table& table = found->second;
  for (size_t i = blocks - std::min(blocks, kPrefetchAhead); i < blocks; ++i) {
    table.prefetch(hash_of(i));
  }
  // Objects that end at a later block are longer.
  for (size_t block = blocks; block-- > 0 && matches.size() < matches_max;) {
    if (block >= kPrefetchAhead) table.prefetch(hash_of(block - kPrefetchAhead));
    const auto objects = table.find(hash_of(block));
    if (objects == table.end()) continue;
    for (const PrefixMatch& object : objects->second) {
      if (object.context_tokens > query.context_tokens) continue;
      matches.push_back(object);
      if (matches.size() == matches_max) break;
    }
  }
  return matches;
}

size_t PrefixIndex::size() const {
  MutexLock lock(&mutex_);
  return size_;
}

}  // namespace kvtier
