// The steps of ranking around its sorts (cuda/sort_pairs.h): scores as keys, ranks as bands, and
// the pairs of each head and band side by side.
//
// A pair is a token of a row; a row is one KV head of one scored layer. Pairs are counted flat,
// [rows, tokens], and sorted ones by their place. Requirements: fewer than 2^31 pairs. Launch: a
// grid of blocks of 256 threads that stride over the pairs, save where it says otherwise. No result
// depends on the order in which threads arrive.
#ifndef KVTIER_CUDA_RANK_BANDS_H_
#define KVTIER_CUDA_RANK_BANDS_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

inline constexpr int kRankBandsMax = 16;

// keys[i] ascends where scores fall, values[i] = i. Where the first token of each row comes first,
// its key is below all others.
struct ScoreKeysParams {
  const float* scores = nullptr;  // [pairs]
  uint32_t* keys = nullptr;
  uint32_t* values = nullptr;
  // Not changed where all is well; ~i of the first pair i whose score is NaN or +inf.
  // REQUIRES: zero before.
  uint32_t* refused = nullptr;
  int64_t pairs = 0;
  int64_t tokens = 0;
  bool first_token_first = false;
};
DeviceError LaunchScoreKeys(const ScoreKeysParams& params, DeviceStream stream);

// keys[j] = row of pair order[j]: sorting by it once more leaves each row's pairs in their order.
struct RowKeysParams {
  const uint32_t* order = nullptr;
  uint32_t* keys = nullptr;
  int64_t pairs = 0;
  int64_t tokens = 0;
};
DeviceError LaunchRowKeys(const RowKeysParams& params, DeviceStream stream);

// Pair order[j] has rank j % period among its own; band b holds the ranks below ends[b] that no
// lower band holds.
struct AssignBandsParams {
  const uint32_t* order = nullptr;
  const float* scores = nullptr;
  uint8_t* band = nullptr;  // [pairs], by pair
  float* thresholds =
      nullptr;  // [pairs / period, bands] score of the band's last rank; others stay
  int64_t pairs = 0;
  int64_t period = 0;  // pairs, or tokens where each row is ranked alone.
  int bands = 0;
  int64_t ends[kRankBandsMax] = {};  // Ascending; the last is `period`.
};
DeviceError LaunchAssignBands(const AssignBandsParams& params, DeviceStream stream);

// Ranks whose scores one block sums up.
struct MassItem {
  int64_t begin = 0;
  int64_t end = 0;
};
// sums[k] = sum of exp(score) over places [items[k].begin, items[k].end), in double, in an order
// that depends on their number alone. Launch: a block per item.
struct ScoreMassParams {
  const uint32_t* order = nullptr;
  const float* scores = nullptr;
  const MassItem* items = nullptr;
  double* sums = nullptr;
  int64_t item_count = 0;
};
DeviceError LaunchScoreMass(const ScoreMassParams& params, DeviceStream stream);

// keys[i] = row * bands + band of pair i, values[i] = its token: sorted by the keys, the tokens of
// each row and band lie side by side and ascend.
struct GroupKeysParams {
  const uint8_t* band = nullptr;
  uint32_t* keys = nullptr;
  uint32_t* values = nullptr;
  int64_t pairs = 0;
  int64_t tokens = 0;
  int bands = 0;
};
DeviceError LaunchGroupKeys(const GroupKeysParams& params, DeviceStream stream);

// starts[g] = how many of the sorted keys are below g, for g in [0, groups].
struct GroupStartsParams {
  const uint32_t* keys = nullptr;
  uint32_t* starts = nullptr;  // [groups + 1]
  int64_t pairs = 0;
  int64_t groups = 0;
};
DeviceError LaunchGroupStarts(const GroupStartsParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_RANK_BANDS_H_
