// The orders in which re-banding cuts the pairs of a stored object (compressor/rebanding.h): made
// once from what the rows say, then every cut is a comparison of ranks.
//
// A pair's place comes before its ties; few enough values to count how many pairs have each:
//   stored band << 17  |  (not a first token) << 16  |  place of the fp16 score, 0 for the largest
//
// Plain data and functions: any thread may call.
#ifndef KVTIER_COMPRESSOR_PAIR_ORDER_H_
#define KVTIER_COMPRESSOR_PAIR_ORDER_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/limits.h"
#include "kvcache/selection.h"

namespace kvtier {

// Behind every pair whose row is here: no band.
inline constexpr uint32_t kNoPlace = limits::kBandsMax << 17;

// REQUIRES: band < limits::kBandsMax; a score that is a number.
uint32_t PlaceOf(uint32_t band, bool first_token, float16 score);
// Back again. REQUIRES: a place, not kNoPlace; for the score, one of a number.
uint32_t BandOfPlace(uint32_t place);
bool IsFirstToken(uint32_t place);
float ScoreOfPlace(uint32_t place);

struct PairPlaces {
  uint64_t layers = 0;  // Scored ones.
  uint64_t kv_heads = 0;
  uint64_t tokens = 0;            // Ranked ones.
  std::vector<uint32_t> of_pair;  // [layers, kv_heads, tokens]; kNoPlace: the row is not here.

  uint64_t heads() const { return layers * kv_heads; }
};

inline constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

struct PairOrder {
  SelectionRule rule = SelectionRule::kExact;
  // [layers, kv_heads, tokens] how many come before: of all pairs, of its head's (kPerHead), or
  // slabs before its own (kPerLayer). kNoRank: the row is not here, or (kPerLayer) its slab is not
  // whole.
  std::vector<uint32_t> ranks;
  // By rank, kPerLayer only: log of the sum of the slab's scores, not rising; +inf for first
  // tokens.
  std::vector<double> slab_log_scores;
};

// Ties go by layer, head, position. Takes 4 bytes per pair, and 4 per place while it runs.
// REQUIRES: at most limits::kRebandPairsMax pairs.
PairOrder OrderPairs(const PairPlaces& places, SelectionRule rule);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_PAIR_ORDER_H_
