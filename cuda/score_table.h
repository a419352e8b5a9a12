// What happens to the scores of a context on a device besides being computed (cuda/score.h) and
// ranked (cuda/rank_bands.h): tokens of every row given one score, and all of them looked at.
//
// Scores are [rows, tokens], fp32; a row is one KV head of one scored layer. Requirements: fewer
// than 2^31 scores. Launch: a grid of blocks of 256 threads that stride over the scores.
#ifndef KVTIER_CUDA_SCORE_TABLE_H_
#define KVTIER_CUDA_SCORE_TABLE_H_

#include <cstdint>

#include "cuda/simt.h"

namespace kvtier {

// scores[r][begin + i] = values[r] for i in [0, count).
struct FillScoresParams {
  float* scores = nullptr;
  const float* values = nullptr;  // [rows]
  int64_t rows = 0;
  int64_t tokens = 0;
  int64_t begin = 0;
  int64_t count = 0;
};
DeviceError LaunchFillScores(const FillScoresParams& params, DeviceStream stream);

// REQUIRES: zero before.
struct ScoreFindings {
  // Stays zero where all is well; ~i of the first score i (of all) that is NaN or infinite.
  uint32_t not_finite = 0;
  uint32_t best = 0;  // The order key (cuda/math/order_key.h) of the largest score.
};
// Looks at tokens [first_token, tokens) of every row. The result does not depend on the order in
// which threads arrive.
struct InspectScoresParams {
  const float* scores = nullptr;
  int64_t rows = 0;
  int64_t tokens = 0;
  int64_t first_token = 0;
  ScoreFindings* findings = nullptr;
};
DeviceError LaunchInspectScores(const InspectScoresParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_SCORE_TABLE_H_
