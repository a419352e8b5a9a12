// Which stored context a new one extends. A manifest names only its own last block, so a store
// cannot see it there; but whoever is about to compute a context looks its prompt up first, and
// that lookup names all blocks. So what it found is remembered under the prompt's last block, at
// which the new object will end, until that object is put or as many later lookups have come: FIFO,
// since the one follows the other within seconds. A hint that is lost costs an eviction policy one
// thing it might have known.
//
// About 200 bytes each. Not thread-safe: TieredStore's mutex guards it.
#ifndef KVTIER_STORE_PREFIX_HINTS_H_
#define KVTIER_STORE_PREFIX_HINTS_H_

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "kvcache/ids.h"

namespace kvtier {

class PrefixHints {
 public:
  static constexpr size_t kHintsMax = 16384;  // 3 MB.

  // REQUIRES: hints_max > 0.
  explicit PrefixHints(size_t hints_max = kHintsMax) : hints_max_(hints_max) {}

  // A prompt of the tenant that ends at `last_block` begins with the stored context `prefix`, and
  // with no longer one. In place of what was known of that prompt.
  void Remember(const TenantId& tenant, const TokenBlockHash& last_block, const Key& prefix);
  // Of a context that ends there; nothing if nobody looked it up lately.
  std::optional<Key> Find(const TenantId& tenant, const TokenBlockHash& last_block) const;

  size_t size() const { return hints_.size(); }

 private:
  using Prompt = std::pair<TenantId, TokenBlockHash>;

  const size_t hints_max_;
  absl::flat_hash_map<Prompt, Key> hints_;
  std::deque<Prompt> order_;  // Those in hints_, oldest first.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PREFIX_HINTS_H_
