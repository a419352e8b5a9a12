// Which stored context a new one extends. A manifest names only its own last block, so a store
// cannot see it there; but whoever is about to compute a context looks its prompt up first, and
// that lookup names all blocks. So what it found is remembered under the prompt's last block, at
// which the new object will end, until that object is put or as many later lookups have come: FIFO,
// since the one follows the other within seconds. A hint that is lost costs an eviction policy one
// thing it might have known.
//
// Bounded per tenant too, so that one tenant's lookups cannot push out the hints of all others.
// About 300 bytes each. Not thread-safe: TieredStore's mutex guards it.
#ifndef KVTIER_STORE_PREFIX_HINTS_H_
#define KVTIER_STORE_PREFIX_HINTS_H_

#include <cstddef>
#include <list>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "kvcache/ids.h"

namespace kvtier {

class PrefixHints {
 public:
  struct Options {
    size_t hints_max = 16384;        // Of all tenants: 5 MB.
    size_t tenant_hints_max = 1024;  // Of one: lookups of some seconds, in 1/16 of the room.
  };

  PrefixHints() : PrefixHints(Options()) {}
  // REQUIRES: both limits > 0.
  explicit PrefixHints(const Options& options);

  // A prompt of the tenant that ends at `last_block` begins with the stored context `prefix`, and
  // with no longer one. In place of what was known of that prompt, and the latest from now on.
  // Beyond a limit the oldest hint goes, of the tenant or of all.
  void Remember(const TenantId& tenant, const TokenBlockHash& last_block, const Key& prefix);
  // Of a context that ends there, which is being put: the hint is forgotten. Nothing if nobody
  // looked it up lately.
  std::optional<Key> Take(const TenantId& tenant, const TokenBlockHash& last_block);

  size_t size() const { return hints_.size(); }

 private:
  using Prompt = std::pair<TenantId, TokenBlockHash>;
  struct Hint;
  using Order = std::list<Hint>;                   // Oldest first.
  using TenantOrder = std::list<Order::iterator>;  // Likewise, those of one tenant.
  struct Hint {
    Prompt prompt;
    Key prefix;
    TenantOrder::iterator of_tenant;
  };

  void Forget(Order::iterator hint);

  const Options options_;
  // 1. Each hint is once in each of the three.
  // 2. A tenant without hints is not in tenants_.
  Order order_;
  absl::flat_hash_map<Prompt, Order::iterator> hints_;
  absl::flat_hash_map<TenantId, TenantOrder> tenants_;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PREFIX_HINTS_H_
