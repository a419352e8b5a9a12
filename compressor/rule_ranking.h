// Which band every pair belongs to, by any selection rule (kvcache/selection.h, docs/recipes.md).
// Built on AssignBands. Plain functions of their arguments: any thread may call.
#ifndef KVTIER_COMPRESSOR_RULE_RANKING_H_
#define KVTIER_COMPRESSOR_RULE_RANKING_H_

#include "absl/status/statusor.h"
#include "compressor/ranking.h"
#include "kvcache/bands.h"
#include "kvcache/selection.h"

namespace kvtier {

// `scores` has a column for every ranked token of the rule (RankedTokens). Errors as AssignBands.
//   kExact       as AssignBands
//   kPerHead     AssignBands in every head alone. A band's threshold is the lowest of its heads'.
//   kWholeHeads  heads are ranked by their best token; ties by layer, then head. A band's threshold
//                is the score of its last head.
//   kKvpress     as AssignBands, with that rule's counts and no token forced to the front
//   kPerLayer    INVALID_ARGUMENT: re-banding alone makes it
// `system_prompt`: there is one, so that no first token needs to come first.
absl::StatusOr<BandAssignment> AssignBandsByRule(const ScoreTable& scores, const BandEdges& edges,
                                                 SelectionRule rule, bool system_prompt);

// The plain twin: sorts everything. Same bands and thresholds; score_mass up to rounding.
absl::StatusOr<BandAssignment> AssignBandsByRuleReference(const ScoreTable& scores,
                                                          const BandEdges& edges,
                                                          SelectionRule rule, bool system_prompt);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_RULE_RANKING_H_
