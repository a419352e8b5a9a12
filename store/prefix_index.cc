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
  std::unique_ptr<Tenant>& own = tenants_[tenant];
  if (own == nullptr) own = std::make_unique<Tenant>();
  Objects& objects = own->Of(last_block_hash.AsStringView())[last_block_hash];
  const auto at = std::lower_bound(objects.begin(), objects.end(), object, IsLonger);
  KVTIER_CHECK(at == objects.end() || *at != object)
      << "upload " << object.upload.ToHex() << " is indexed already";
  objects.insert(at, object);
  ++own->objects;
  ++size_;
}

void PrefixIndex::Remove(const TenantId& tenant, const TokenBlockHash& last_block_hash,
                         const PrefixMatch& object) {
  MutexLock lock(&mutex_);
  const auto own = tenants_.find(tenant);
  if (own == tenants_.end()) return;
  Table& table = own->second->Of(last_block_hash.AsStringView());
  const auto found = table.find(last_block_hash);
  if (found == table.end()) return;
  Objects& objects = found->second;
  const auto at = std::lower_bound(objects.begin(), objects.end(), object, IsLonger);
  if (at == objects.end() || *at != object) return;
  objects.erase(at);
  --size_;
  if (objects.empty()) table.erase(found);
  if (--own->second->objects == 0) tenants_.erase(own);
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
  const Tenant& own = *found->second;
  for (size_t i = blocks - std::min(blocks, kPrefetchAhead); i < blocks; ++i) {
    own.Of(hash_of(i)).prefetch(hash_of(i));
  }
  // Objects that end at a later block are longer.
  for (size_t block = blocks; block-- > 0 && matches.size() < matches_max;) {
    if (block >= kPrefetchAhead) {
      const absl::string_view ahead = hash_of(block - kPrefetchAhead);
      own.Of(ahead).prefetch(ahead);
    }
    const Table& table = own.Of(hash_of(block));
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
