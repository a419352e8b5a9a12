#include <cmath>
#include <cstdint>

#include "cuda/attention.h"
#include "cuda/key_row.h"
#include "cuda/math/key_tile.h"
#include "cuda/math/softmax.h"

namespace kvtier {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerWarp = kQueryTile / (kThreads / kWarpThreads);
static_assert(kRowsPerWarp * (kThreads / kWarpThreads) == kQueryTile,
              "each warp owns the softmax of as many rows");
static_assert(KeyTile(1) == kKeyTileMax && KeyTile(1) <= kThreads,
              "one thread finds each key of a tile");

// Shared memory of a block.
struct Shared {
  KeyRow* rows;    // [KeyTile], first: the widest alignment
  float* tile;     // [KeyTile, head_dim + 1] keys, then values
  float* q;        // [kQueryTile, head_dim], scaled to base 2
  float* out;      // [kQueryTile, head_dim]
  float* weights;  // [kQueryTile, KeyTile] logits, then weights
  float* largest;  // [kQueryTile]
  float* sum;      // [kQueryTile]
  float* factor;   // [kQueryTile]
};

KVTIER_HOST_DEVICE size_t SharedBytes(int64_t dim) {
  const int64_t floats =
      KeyTileFloats(dim) + 2 * kQueryTile * dim + kQueryTile * KeyTile(dim) + 3 * kQueryTile;
  return KeyTile(dim) * sizeof(KeyRow) + floats * sizeof(float);
}

KVTIER_DEVICE Shared CarveShared(int64_t dim) {
  Shared s;
  s.rows = static_cast<KeyRow*>(SharedMemory());
  s.tile = reinterpret_cast<float*>(s.rows + KeyTile(dim));
  s.q = s.tile + KeyTileFloats(dim);
  s.out = s.q + kQueryTile * dim;
  s.weights = s.out + kQueryTile * dim;
  s.largest = s.weights + kQueryTile * KeyTile(dim);
  s.sum = s.largest + kQueryTile;
  s.factor = s.sum + kQueryTile;
  return s;
}

// Keys or values of `count` rows into the tile; zeros behind them, whose weight is zero as well.
KVTIER_DEVICE void LoadTile(const AttentionParams& p, const Shared& s, int count, bool of_keys) {
  const int dim = static_cast<int>(p.head_dim);
  for (int i = ThreadIndex(); i < KeyTile(dim) * dim; i += kThreads) {
    const int key = i / dim;
    const int d = i % dim;
    float value = 0;
    if (key < count) {
      const KeyRow& row = s.rows[key];
      value = DecodeElement(of_keys ? row.keys : row.values,
                            of_keys ? row.key_scales : row.value_scales, row.code, p.kv_type, d);
    }
    s.tile[key * (dim + 1) + d] = value;
  }
}

KVTIER_DEVICE void LoadQueries(const AttentionParams& p, const Shared& s,
                               const AttentionItem& item) {
  const int dim = static_cast<int>(p.head_dim);
  for (int i = ThreadIndex(); i < kQueryTile * dim; i += kThreads) {
    const int64_t row = item.first_row + i / dim;
    float value = 0;
    if (row < p.query_rows * p.group) {
      const int64_t query_head = item.head * p.group + row % p.group;
      const int64_t at = (row / p.group * p.kv_heads * p.group + query_head) * dim + i % dim;
      value = LoadElement(p.q, at, p.q_type) * (p.scale * kLog2E);
    }
    s.q[i] = value;
    s.out[i] = 0;
  }
  if (ThreadIndex() < kQueryTile) {
    s.largest[ThreadIndex()] = MinusInfinity();
    s.sum[ThreadIndex()] = 0;
  }
}

// Logits of keys [tile_begin, ...) for all rows of the item; -inf where a row does not see the key.
KVTIER_DEVICE void Logits(const AttentionParams& p, const Shared& s, const AttentionItem& item,
                          int64_t tile_begin) {
  const int dim = static_cast<int>(p.head_dim);
  const int tile = KeyTile(dim);
  const int64_t keys = HeadKeys(p, item.head);
  for (int i = ThreadIndex(); i < kQueryTile * tile; i += kThreads) {
    const int key = i % tile;
    const int row = i / tile;
    const int64_t query = (item.first_row + row) / p.group;
    const int64_t end = KeysEnd(keys, p.query_rows, query);
    const int64_t at = tile_begin + key;
    float logit = MinusInfinity();
    if (query < p.query_rows && at < end && at < item.key_end && at >= KeysBegin(end, p.window)) {
      const float* a = s.q + row * dim;
      const float* b = s.tile + key * (dim + 1);
      float dot = 0;
      for (int d = 0; d < dim; ++d) dot += a[d] * b[d];
      logit = dot;
    }
    s.weights[row * tile + key] = logit;
  }
}

// Logits become weights; the rows' largest logit and sum move on. Each warp has its own rows.
KVTIER_DEVICE void Softmax(const Shared& s, int tile) {
  const int lane = ThreadIndex() % kWarpThreads;
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const int row = ThreadIndex() / kWarpThreads * kRowsPerWarp + i;
    float* weights = s.weights + row * tile;
    float next = s.largest[row];
    const float before = next;
    for (int key = lane; key < tile; key += kWarpThreads) next = fmaxf(next, weights[key]);
    for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
      next = fmaxf(next, ShuffleXor(next, mask));
    }
    float sum = 0;
    for (int key = lane; key < tile; key += kWarpThreads) {
      weights[key] = SoftmaxWeight(weights[key], next);
      sum += weights[key];
    }
    for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
    // Every lane has read the row's state before the shuffles.
    if (lane == 0) {
      s.factor[row] = SoftmaxWeight(before, next);
      s.sum[row] = s.sum[row] * s.factor[row] + sum;
      s.largest[row] = next;
    }
  }
}

KVTIER_DEVICE void Accumulate(const Shared& s, int dim) {
  const int tile = KeyTile(dim);
  for (int i = ThreadIndex(); i < kQueryTile * dim; i += kThreads) {
    const float* weights = s.weights + i / dim * tile;
    const float* values = s.tile + i % dim;
    float sum = 0;
    for (int key = 0; key < tile; ++key) {
      // A row that the query does not see may hold anything: zero times infinity is NaN.
      if (weights[key] != 0) sum += weights[key] * values[key * (dim + 1)];
    }
    s.out[i] = s.out[i] * s.factor[i / dim] + sum;
  }
}

KVTIER_DEVICE void StoreOut(const AttentionParams& p, int64_t head, int64_t row, int d,
                            float value) {
  const int64_t query_head = head * p.group + row % p.group;
  const int64_t at = (row / p.group * p.kv_heads * p.group + query_head) * p.head_dim + d;
  StoreElement(p.out, at, p.q_type, value);
}

// Results of an item that is the whole, or its part for the merge.
KVTIER_DEVICE void StoreItem(const AttentionParams& p, const Shared& s, const AttentionItem& item) {
  const int dim = static_cast<int>(p.head_dim);
  const int64_t rows = p.query_rows * p.group;
  if (ThreadIndex() < kQueryTile) {
    const int row = ThreadIndex();
    const float lse = LogSum2(s.largest[row], s.sum[row]);
    if (item.slot >= 0) {
      p.part_lse[item.slot * kQueryTile + row] = lse;
    } else if (p.lse != nullptr && item.first_row + row < rows) {
      p.lse[item.head * rows + item.first_row + row] = lse;
    }
  }
  if (p.out == nullptr) return;  // All threads alike; no barrier follows.
  for (int i = ThreadIndex(); i < kQueryTile * dim; i += kThreads) {
    const float sum = s.sum[i / dim];
    const float value = sum == 0 ? 0 : s.out[i] / sum;
    if (item.slot >= 0) {
      p.part_out[item.slot * kQueryTile * dim + i] = value;
    } else if (item.first_row + i / dim < rows) {
      StoreOut(p, item.head, item.first_row + i / dim, i % dim, value);
    }
  }
}

KVTIER_KERNEL void AttentionKernel(AttentionParams p) {
  const AttentionItem item = SeenPart(p, p.items[BlockX()], kQueryTile);
  const int dim = static_cast<int>(p.head_dim);
  const int tile = KeyTile(dim);
  const Shared s = CarveShared(dim);
  LoadQueries(p, s, item);
  for (int64_t begin = item.key_begin; begin < item.key_end; begin += tile) {
    const int64_t left = item.key_end - begin;
    const int count = static_cast<int>(left < tile ? left : tile);
    if (ThreadIndex() < count) s.rows[ThreadIndex()] = FindKey(p, item.head, begin + ThreadIndex());
    BlockSync();  // Rows are found (and queries loaded).
    LoadTile(p, s, count, /*of_keys=*/true);
    BlockSync();
    Logits(p, s, item, begin);
    BlockSync();  // Logits are there; the keys have been read.
    if (p.out != nullptr) LoadTile(p, s, count, /*of_keys=*/false);
    Softmax(s, tile);
    BlockSync();
    if (p.out != nullptr) Accumulate(s, dim);
    // The next rows may be found now: they are read, and the tile is written, after a barrier.
  }
  BlockSync();  // An item whose keys nobody sees comes here straight from loading its queries.
  StoreItem(p, s, item);
}

struct MergeParams {
  AttentionParams attention;
  int query_tile;
};

KVTIER_KERNEL void AttentionMergeKernel(MergeParams m) {
  const AttentionParams& p = m.attention;
  const AttentionMerge merge = p.merges[BlockX()];
  const int dim = static_cast<int>(p.head_dim);
  const int64_t rows = p.query_rows * p.group;
  for (int i = ThreadIndex(); i < m.query_tile * dim; i += kThreads) {
    const int row = i / dim;
    const int d = i % dim;
    if (merge.first_row + row >= rows) break;
    float largest = MinusInfinity();
    for (int64_t slot = merge.slot_begin; slot < merge.slot_end; ++slot) {
      largest = fmaxf(largest, p.part_lse[slot * m.query_tile + row]);
    }
    float sum = 0;
    float out = 0;
    for (int64_t slot = merge.slot_begin; slot < merge.slot_end; ++slot) {
      const float weight = PartWeight(p.part_lse[slot * m.query_tile + row], largest);
      sum += weight;
      // A part in which the row saw nothing has no output to speak of.
      if (p.out != nullptr && weight > 0) {
        out += weight * p.part_out[slot * m.query_tile * dim + i];
      }
    }
    if (p.out != nullptr) StoreOut(p, merge.head, merge.first_row + row, d, out / sum);
    if (p.lse != nullptr && d == 0) {
      p.lse[merge.head * rows + merge.first_row + row] = LogSum2(largest, sum);
    }
  }
}

}  // namespace

DeviceError LaunchAttention(const AttentionParams& p, DeviceStream stream) {
  const DeviceError error = LaunchKernel(AttentionKernel, Grid{.x = p.item_count}, kThreads,
                                         SharedBytes(p.head_dim), stream, p);
  return error != 0 ? error : LaunchAttentionMerge(p, kQueryTile, stream);
}

DeviceError LaunchAttentionMerge(const AttentionParams& p, int query_tile, DeviceStream stream) {
  return LaunchKernel(AttentionMergeKernel, Grid{.x = p.merge_count}, kThreads, 0, stream,
                      MergeParams{p, query_tile});
}

}  // namespace kvtier
