#include "store/prefix_hints.h"

#include "base/log.h"

namespace kvtier {

PrefixHints::PrefixHints(const Options& options) : options_(options) {
  KVTIER_CHECK_GT(options.hints_max, 0u);
  KVTIER_CHECK_GT(options.tenant_hints_max, 0u);
}

void PrefixHints::Remember(const TenantId& tenant, const TokenBlockHash& last_block,
                           const Key& prefix) {
  const Prompt prompt{tenant, last_block};
  if (const auto known = hints_.find(prompt); known != hints_.end()) Forget(known->second);
  if (const auto own = tenants_.find(tenant);
      own != tenants_.end() && own->second.size() >= options_.tenant_hints_max) {
    Forget(own->second.front());
  }
  if (hints_.size() >= options_.hints_max) Forget(order_.begin());
  const auto hint = order_.insert(order_.end(), Hint{prompt, prefix, {}});
  TenantOrder& own = tenants_[tenant];
  hint->of_tenant = own.insert(own.end(), hint);
  hints_.emplace(prompt, hint);
}

std::optional<Key> PrefixHints::Take(const TenantId& tenant, const TokenBlockHash& last_block) {
  const auto found = hints_.find(Prompt{tenant, last_block});
  if (found == hints_.end()) return std::nullopt;
  const Key prefix = found->second->prefix;
  Forget(found->second);
  return prefix;
}

void PrefixHints::Forget(Order::iterator hint) {
  const auto own = tenants_.find(hint->prompt.first);
  own->second.erase(hint->of_tenant);
  if (own->second.empty()) tenants_.erase(own);
  hints_.erase(hint->prompt);
  order_.erase(hint);
}

}  // namespace kvtier
