// ScoreMax (cuda/score.h) on tensor cores, for bf16 queries and keys.
//
// Layout: as ScoreMaxParams. Requirements: q and keys bf16, aligned to 16 bytes; head_dim 64, 96,
// 128 or 256; fewer than 2^31 packed query rows; no key_offsets. Launch: blocks of 128 threads over
// (tiles of 128 keys, KV heads, parts of the query rows). A warp keeps 32 keys in registers, half
// of a product each; query rows go through shared memory, 64 at a time.
#ifndef KVTIER_CUDA_SCORE_TENSOR_H_
#define KVTIER_CUDA_SCORE_TENSOR_H_

#include <cstdint>

#include "cuda/score.h"
#include "cuda/simt.h"

namespace kvtier {

inline constexpr int kScoreTensorKeys = 128;  // Of a block.
inline constexpr int kScoreTensorRows = 64;   // Query rows of a tile.

// Whether these arguments meet the requirements.
bool ScoreTensorFits(const ScoreMaxParams& params);

// kInvalidConfiguration where ScoreTensorFits() is false.
DeviceError LaunchScoreTensor(const ScoreMaxParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_SCORE_TENSOR_H_
