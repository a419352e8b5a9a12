// How a ratio becomes a number of rows, for each of the rules by which recipes select them
// (docs/recipes.md). Ranking, packing and the check of manifests count with these functions, so
// that they cannot disagree. All arithmetic is in integers. Plain functions: any thread may call.
//
//   KeptPairs(SelectionRule::kExact, ratio, layers * kv_heads, context_tokens)
#ifndef KVTIER_KVCACHE_SELECTION_H_
#define KVTIER_KVCACHE_SELECTION_H_

#include <cstdint>

#include "kvcache/bands.h"

namespace kvtier {

// A head is one KV head of one scored layer; "pairs" are the ranked rows of all of them.
enum class SelectionRule {
  kExact,       // One order over all pairs: floor(ratio * pairs) are kept.
  kPerHead,     // The best floor(ratio * tokens) of every head, the same number everywhere.
  kWholeHeads,  // The best floor(ratio * heads) heads with all their tokens.
  kKvpress,     // One order that includes the system prompt; floor((1 - ratio) * pairs) go.
  // The same number in every head of a layer: a slab is the j-th best row of each of its heads, and
  // the best floor(ratio * slabs) of all layers are kept. Made by re-banding alone.
  kPerLayer,
};

// Whether the system prompt lies outside of the ranking, in band 0 of every head.
constexpr bool ProtectsSystemPrompt(SelectionRule rule) { return rule != SelectionRule::kKvpress; }

// Whether, where there is no system prompt, the first token of each head ranks before all others
// and counts in the budget (docs/recipes.md). Whole heads are never cut, and kvpress protects by
// score alone.
constexpr bool PutsFirstTokenFirst(SelectionRule rule) {
  return rule == SelectionRule::kExact || rule == SelectionRule::kPerHead ||
         rule == SelectionRule::kPerLayer;
}

// Tokens of a head that are ranked.
constexpr uint64_t RankedTokens(SelectionRule rule, uint64_t system_tokens,
                                uint64_t context_tokens) {
  return ProtectsSystemPrompt(rule) ? context_tokens : system_tokens + context_tokens;
}

// Pairs kept at `ratio`, of `heads` heads with `tokens` ranked tokens each. `kv_heads` of them make
// a layer, which only kPerLayer asks. REQUIRES: heads * tokens < 2^44; kv_heads > 0.
uint64_t KeptPairs(SelectionRule rule, Ratio ratio, uint64_t heads, uint64_t tokens,
                   uint64_t kv_heads = 1);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SELECTION_H_
