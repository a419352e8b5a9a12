#include "store/prefix_hints.h"

#include "base/log.h"

namespace kvtier {

void PrefixHints::Remember(const TenantId& tenant, const TokenBlockHash& last_block,
                           const Key& prefix) {
  KVTIER_CHECK_GT(hints_max_, 0u);
  const auto [at, is_new] = hints_.insert_or_assign(Prompt{tenant, last_block}, prefix);
  if (!is_new) return;
  order_.push_back(at->first);
  if (order_.size() <= hints_max_) return;
  hints_.erase(order_.front());
  order_.pop_front();
}

std::optional<Key> PrefixHints::Find(const TenantId& tenant,
                                     const TokenBlockHash& last_block) const {
  const auto found = hints_.find(Prompt{tenant, last_block});
  if (found == hints_.end()) return std::nullopt;
  return found->second;
}

}  // namespace kvtier
