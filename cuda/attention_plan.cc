#include "cuda/math/attention_plan.h"

#include <algorithm>

namespace kvtier {
namespace {

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

AttentionPlan PlanAttention(const AttentionShape& shape) {
  AttentionPlan plan;
  const int64_t rows = shape.query_rows * shape.group;
  struct Tile {
    int64_t head, first_row, begin, end;
  };
  std::vector<Tile> tiles;
  int64_t keys = 0;
  for (int64_t head = 0; head < static_cast<int64_t>(shape.head_rows.size()); ++head) {
    for (int64_t first = 0; first < rows; first += shape.query_tile) {
      const int64_t last = std::min(first + shape.query_tile, rows) - 1;
      const int64_t first_end =
          KeysEnd(shape.head_rows[head], shape.query_rows, first / shape.group);
      const Tile tile{.head = head,
                      .first_row = first,
                      .begin = KeysBegin(first_end - shape.rows_fewer, shape.window),
                      .end = KeysEnd(shape.head_rows[head], shape.query_rows, last / shape.group)};
      keys += tile.end - tile.begin;
      tiles.push_back(tile);
    }
  }
  // Equal parts over all tiles, however uneven the heads are.
  const int64_t share = DivideUp(keys, std::max<int64_t>(1, shape.items_wanted));
  const int64_t part = std::max(kPartKeysMin, DivideUp(share, kKeyTileMax) * kKeyTileMax);
  for (const Tile& tile : tiles) {
    const int64_t parts = DivideUp(tile.end - tile.begin, part);
    if (parts > 1) {
      plan.merges.push_back({.first_row = tile.first_row,
                             .slot_begin = plan.slots,
                             .slot_end = plan.slots + parts,
                             .head = tile.head});
    }
    for (int64_t i = 0; i < parts; ++i) {
      plan.items.push_back({.first_row = tile.first_row,
                            .key_begin = tile.begin + i * part,
                            .key_end = std::min(tile.begin + (i + 1) * part, tile.end),
                            .slot = parts > 1 ? plan.slots++ : -1,
                            .head = tile.head});
    }
  }
  return plan;
}

}  // namespace kvtier
