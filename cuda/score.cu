#include <cstdint>

#include "cuda/math/attention_plan.h"
#include "cuda/math/key_tile.h"
#include "cuda/math/order_key.h"
#include "cuda/math/softmax.h"
#include "cuda/score.h"

namespace kvtier {
namespace {

constexpr int kThreads = 128;

KVTIER_HOST_DEVICE size_t SharedBytes(int64_t dim) {
  return (KeyTileFloats(dim) + kQueryTile * dim) * sizeof(float);
}

KVTIER_KERNEL void ScoreMaxKernel(ScoreMaxParams p) {
  const int dim = static_cast<int>(p.head_dim);
  const int tile = KeyTile(dim);
  const int64_t head = BlockY();
  const int64_t rows = p.query_rows * p.group;
  auto* keys = static_cast<float*>(SharedMemory());  // [tile, dim + 1]
  float* q = keys + KeyTileFloats(dim);              // [kQueryTile, dim]

  const int64_t column_begin = int64_t{BlockX()} * tile;
  for (int i = ThreadIndex(); i < tile * dim; i += kThreads) {
    const int64_t column = column_begin + i / dim;
    float value = 0;
    if (column < p.columns) {
      const int64_t row = head * p.capacity + p.chunk_begin + column;
      value = LoadElement(p.keys, row * dim + i % dim, p.key_type);
    }
    keys[i / dim * (dim + 1) + i % dim] = value;
  }

  // A thread has one key and, of each tile of queries, some rows.
  const int key = ThreadIndex() % tile;
  const int64_t column = column_begin + key;
  const int rows_each = kQueryTile * tile / kThreads;
  const int first_row = ThreadIndex() / tile * rows_each;
  const int64_t tiles = (rows + kQueryTile - 1) / kQueryTile;
  const int64_t tile_begin = tiles * BlockZ() / p.parts;
  const int64_t tile_end = tiles * (BlockZ() + 1) / p.parts;
  uint32_t best = kOrderKeyOfNothing;
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    BlockSync();  // The queries before these have been read.
    for (int i = ThreadIndex(); i < kQueryTile * dim; i += kThreads) {
      const int64_t row = t * kQueryTile + i / dim;
      float value = 0;
      if (row < rows) {
        const int64_t query_head = head * p.group + row % p.group;
        const int64_t at = (row / p.group * p.kv_heads * p.group + query_head) * dim + i % dim;
        value = LoadElement(p.q, at, p.q_type) * (p.scale * kLog2E);
      }
      q[i] = value;
    }
    BlockSync();
    for (int r = first_row; r < first_row + rows_each; ++r) {
      const int64_t row = t * kQueryTile + r;
      if (row >= rows || column >= p.columns) break;
      float dot = 0;
      for (int d = 0; d < dim; ++d) dot += q[r * dim + d] * keys[key * (dim + 1) + d];
      float score = (dot - p.lse[head * rows + row]) * kLn2;
      if (p.row_offsets != nullptr) score += p.row_offsets[row / p.group];
      if (p.key_offsets != nullptr) {
        score += p.key_offsets[(head * p.group + row % p.group) * p.columns + column];
      }
      const uint32_t order = OrderKey(score);
      best = order > best ? order : best;
    }
  }
  if (column < p.columns) AtomicMax(&p.best[head * p.columns + column], best);
}

KVTIER_KERNEL void ScoreValueKernel(ScoreValueParams p) {
  const int64_t i = int64_t{BlockX()} * ThreadCount() + ThreadIndex();
  if (i >= p.kv_heads * p.columns) return;
  const float value = ValueOfOrderKey(p.best[i]);
  p.out[i / p.columns * p.out_stride + i % p.columns] = p.clamp && value > 0 ? 0 : value;
}

}  // namespace

DeviceError LaunchScoreMax(const ScoreMaxParams& p, DeviceStream stream) {
  const int tile = KeyTile(p.head_dim);
  const Grid grid{.x = (p.columns + tile - 1) / tile, .y = p.kv_heads, .z = p.parts};
  return LaunchKernel(ScoreMaxKernel, grid, kThreads, SharedBytes(p.head_dim), stream, p);
}

DeviceError LaunchScoreValue(const ScoreValueParams& p, DeviceStream stream) {
  const Grid grid{.x = (p.kv_heads * p.columns + kThreads - 1) / kThreads};
  return LaunchKernel(ScoreValueKernel, grid, kThreads, 0, stream, p);
}

}  // namespace kvtier
