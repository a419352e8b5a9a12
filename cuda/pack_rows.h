// Rows of one layer into the blocks of a segment (kvcache/segment_layout.h), encoded as the object
// stores them: keys, values, their scales, log scores and, where the codec has them plain,
// positions.
//
// Layout: the layer [kv_heads, capacity, head_dim]; a block's arrays start at multiples of
// kPackAlignment from `out`, and the gap behind each is zeroed. Requirements: `out` aligned to
// kPackAlignment, keys and values to their elements; head_dim at least 1. Launch: a warp per row,
// eight to a block.
#ifndef KVTIER_CUDA_PACK_ROWS_H_
#define KVTIER_CUDA_PACK_ROWS_H_

#include <cstdint>

#include "cuda/math/row_decode.h"
#include "cuda/simt.h"

namespace kvtier {

inline constexpr int64_t kPackAlignment = 64;

// One head that has rows.
struct PackBlock {
  int64_t head = 0;
  int64_t first_row = 0;       // Of the launch.
  int64_t rows = 0;            // Above 0.
  int64_t protected_rows = 0;  // The first ones: positions 0, 1, ...
  int64_t first_token = 0;     // Where in `tokens` the others start.
  int64_t first_score = 0;     // Where in `scores` the head's first ranked token is.
  // From `out`, in bytes.
  int64_t positions = 0;  // u32[rows]; below 0: not written
  int64_t log_scores = 0;
  int64_t keys = 0;
  int64_t values = 0;
  int64_t key_scales = 0;  // Unused by kRaw.
  int64_t value_scales = 0;
};

// What the codec cannot hold: ~r of the first row r of the launch whose key, and of the first one
// whose value it is; 0: none.
struct PackRefusals {
  uint32_t key = 0;
  uint32_t value = 0;
};

struct PackRowsParams {
  const void* keys = nullptr;
  const void* values = nullptr;
  Element type = Element::kBf16;
  int64_t capacity = 0;
  int64_t head_dim = 0;
  RowCode code = RowCode::kRaw;
  const uint32_t* tokens = nullptr;  // Ranked tokens; token t lies in row protected_tokens + t.
  const float* scores = nullptr;
  int64_t protected_tokens = 0;
  const PackBlock* blocks = nullptr;  // By first_row.
  int64_t block_count = 0;
  int64_t rows = 0;  // Of all blocks.
  std::byte* out = nullptr;
  PackRefusals* refused = nullptr;  // REQUIRES: zero before.
};
DeviceError LaunchPackRows(const PackRowsParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_PACK_ROWS_H_
