#include "kvcache/selection.h"

#include "base/log.h"

namespace kvtier {

uint64_t KeptPairs(SelectionRule rule, Ratio ratio, uint64_t heads, uint64_t tokens,
                   uint64_t kv_heads) {
  switch (rule) {
    case SelectionRule::kExact:
      return ratio.Of(heads * tokens);
    case SelectionRule::kPerHead:
      return heads * ratio.Of(tokens);
    case SelectionRule::kWholeHeads:
      return ratio.Of(heads) * tokens;
    case SelectionRule::kKvpress:
      return ratio.RoundedUpOf(heads * tokens);
    case SelectionRule::kPerLayer:
      return kv_heads * ratio.Of(heads / kv_heads * tokens);
  }
  KVTIER_CHECK(false) << "selection rule " << static_cast<int>(rule);
  return 0;
}

}  // namespace kvtier
