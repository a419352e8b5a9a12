// Which block of a launch attends to what: query rows in tiles, the keys of each tile in parts.
// Decided by shapes alone and merged in a fixed order, so that results repeat bit by bit. Plain
// functions; any thread may call.
#ifndef KVTIER_CUDA_MATH_ATTENTION_PLAN_H_
#define KVTIER_CUDA_MATH_ATTENTION_PLAN_H_

#include <cstdint>
#include <vector>

#include "cuda/simt.h"

namespace kvtier {

// Query rows of one KV head that a block of cuda/attention.h takes. The query heads of a group are
// packed: packed row r of a head is row r / group of the queries, query head r % group of the
// group.
inline constexpr int kQueryTile = 16;
// Parts are multiples of this many keys, the largest tile of keys.
inline constexpr int64_t kKeyTileMax = 64;
// Fewer keys are not worth a block of their own.
inline constexpr int64_t kPartKeysMin = 256;

// What one block does.
struct AttentionItem {
  int64_t first_row = 0;  // Packed; query_tile rows or what is left.
  int64_t key_begin = 0;
  int64_t key_end = 0;
  int64_t slot = -1;  // Where its part goes; -1: it is the whole, and goes to the output.
  int64_t head = 0;
};

// The parts of one tile of query rows, in the order in which they are merged.
struct AttentionMerge {
  int64_t first_row = 0;
  int64_t slot_begin = 0;
  int64_t slot_end = 0;
  int64_t head = 0;
};

struct AttentionPlan {
  std::vector<AttentionItem> items;
  std::vector<AttentionMerge> merges;
  int64_t slots = 0;
};

struct AttentionShape {
  int64_t query_rows = 0;
  int64_t group = 0;
  std::vector<int64_t> head_rows;  // Keys of each KV head; at least query_rows.
  // The plan also holds where every head has up to so many keys fewer, of those before the queries'
  // own: items may then reach past the last key, or see none.
  int64_t rows_fewer = 0;
  int64_t window = 0;        // 0: none.
  int64_t items_wanted = 1;  // About as many blocks as the device runs at once.
  int64_t query_tile = kQueryTile;
};

// First and last + 1 of the keys that query row `row` sees: all but those of the rows behind it,
// and only the last `window` of them.
KVTIER_HOST_DEVICE inline int64_t KeysEnd(int64_t head_rows, int64_t query_rows, int64_t row) {
  return head_rows - query_rows + row + 1;
}
KVTIER_HOST_DEVICE inline int64_t KeysBegin(int64_t keys_end, int64_t window) {
  return window == 0 || keys_end < window ? 0 : keys_end - window;
}

// Every key that a row sees is in exactly one item of its tile.
// REQUIRES: query_rows and group above 0; each of head_rows at least query_rows + rows_fewer.
AttentionPlan PlanAttention(const AttentionShape& shape);

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_ATTENTION_PLAN_H_
