#include <cstdint>

#include "cuda/math/order_key.h"
#include "cuda/math/softmax.h"
#include "cuda/score_tensor.h"
#include "cuda/tensor_core.h"
#include "cuda/vector.h"

namespace kvtier {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpKeys = 32;  // Two products of 16.
constexpr int kKeySets = kWarpKeys / 16;
static_assert(kThreads / kWarpThreads * kWarpKeys == kScoreTensorKeys, "the keys of a block");

constexpr int kVectorElements = 8;  // Of a Vector.

// Words (two elements) of a query row in shared memory: 16 bytes more than the row, so that the
// eight rows that a warp reads at once lie in different banks.
template <int kDim>
constexpr int kRowWords = kDim / 2 + 4;

template <int kDim>
constexpr size_t kSharedBytes = kScoreTensorRows*(kRowWords<kDim> + 1) * sizeof(uint32_t);

// Keys [first, first + 32) of the chunk as the products' left sides; zeros past its end.
template <int kDim>
KVTIER_DEVICE void LoadKeys(const ScoreMaxParams& p, int64_t head, int64_t first,
                            uint32_t (&a)[kKeySets][kDim / 16][4]) {
  const int lane = ThreadIndex() % kWarpThreads;
  KVTIER_UNROLL
  for (int set = 0; set < kKeySets; ++set) {
    KVTIER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t column = first + set * 16 + half * 8 + lane / 4;
      const int64_t row = head * p.capacity + p.chunk_begin + column;
      const auto* words =
          reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(p.keys) + row * kDim);
      KVTIER_UNROLL
      for (int k = 0; k < kDim / 16; ++k) {
        const bool inside = column < p.columns;
        a[set][k][half] = inside ? words[k * 8 + lane % 4] : 0;
        a[set][k][half + 2] = inside ? words[k * 8 + lane % 4 + 4] : 0;
      }
    }
  }
}

// Packed query rows [first, first + 64) and what their logits lose; past the end zeros, and
// infinity, which no maximum takes.
template <int kDim>
KVTIER_DEVICE void LoadQueries(const ScoreMaxParams& p, int64_t head, int64_t first, int64_t rows,
                               uint32_t* queries, float* loss) {
  constexpr int kRowVectors = kDim / kVectorElements;
  // 32 bits: a division of 64 costs more than the products that a row is for.
  const auto group = static_cast<uint32_t>(p.group);
  for (int i = ThreadIndex(); i < kScoreTensorRows * kRowVectors; i += kThreads) {
    const auto row = static_cast<uint32_t>(first) + i / kRowVectors;
    Vector vector = {};
    if (row < rows) {
      const uint32_t query = row / group;
      const int64_t query_head = head * p.group + (row - query * group);
      const int64_t at = (query * p.kv_heads * p.group + query_head) * kRowVectors;
      vector = LoadVector(static_cast<const Vector*>(p.q) + at + i % kRowVectors);
    }
    uint32_t* to = queries + i / kRowVectors * kRowWords<kDim> + i % kRowVectors * 4;
    StoreVector(to, vector);
  }
  if (ThreadIndex() < kScoreTensorRows) {
    const int64_t row = first + ThreadIndex();
    float value = -MinusInfinity();
    if (row < rows) {
      value = p.lse[head * rows + row];
      if (p.row_offsets != nullptr) value -= p.row_offsets[row / p.group] * kLog2E;
    }
    loss[ThreadIndex()] = value;
  }
}

template <int kDim>
KVTIER_KERNEL void ScoreTensorKernel(ScoreMaxParams p) {
  auto* queries = static_cast<uint32_t*>(SharedMemory());  // [64, kRowWords]
  auto* loss = reinterpret_cast<float*>(queries + kScoreTensorRows * kRowWords<kDim>);  // [64]
  const int lane = ThreadIndex() % kWarpThreads;
  const int64_t head = BlockY();
  const int64_t rows = p.query_rows * p.group;
  const int64_t first_key =
      int64_t{BlockX()} * kScoreTensorKeys + ThreadIndex() / kWarpThreads * kWarpKeys;
  uint32_t a[kKeySets][kDim / 16][4];
  LoadKeys<kDim>(p, head, first_key, a);

  const float scale = p.scale * kLog2E;
  float best[kKeySets][2];  // Of keys lane / 4 and lane / 4 + 8, over this lane's query rows.
  KVTIER_UNROLL
  for (int set = 0; set < kKeySets; ++set) best[set][0] = best[set][1] = MinusInfinity();
  const int64_t tiles = (rows + kScoreTensorRows - 1) / kScoreTensorRows;
  const int64_t tile_end = tiles * (BlockZ() + 1) / p.parts;
  for (int64_t tile = tiles * BlockZ() / p.parts; tile < tile_end; ++tile) {
    BlockSync();  // The rows before these have been read.
    LoadQueries<kDim>(p, head, tile * kScoreTensorRows, rows, queries, loss);
    BlockSync();
    for (int n = 0; n < kScoreTensorRows; n += 8) {
      float d[kKeySets][4] = {};
      const uint32_t* row = queries + (n + lane / 4) * kRowWords<kDim> + lane % 4;
      KVTIER_UNROLL
      for (int k = 0; k < kDim / 16; ++k) {
        const uint32_t b[2] = {row[k * 8], row[k * 8 + 4]};
        KVTIER_UNROLL
        for (int set = 0; set < kKeySets; ++set) MultiplyAdd(d[set], a[set][k], b);
      }
      const float loss0 = loss[n + lane % 4 * 2];
      const float loss1 = loss[n + lane % 4 * 2 + 1];
      KVTIER_UNROLL
      for (int set = 0; set < kKeySets; ++set) {
        KVTIER_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float score =
              MaxOrNan(d[set][half * 2] * scale - loss0, d[set][half * 2 + 1] * scale - loss1);
          best[set][half] = MaxOrNan(best[set][half], score);
        }
      }
    }
  }
  KVTIER_UNROLL
  for (int set = 0; set < kKeySets; ++set) {
    KVTIER_UNROLL
    for (int half = 0; half < 2; ++half) {
      float value = best[set][half];
      value = MaxOrNan(value, ShuffleXor(value, 1));  // The four lanes of a key.
      value = MaxOrNan(value, ShuffleXor(value, 2));
      const int64_t column = first_key + set * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && column < p.columns) {
        AtomicMax(&p.best[head * p.columns + column], OrderKey(value * kLn2));
      }
    }
  }
}

template <int kDim>
DeviceError Launch(const ScoreMaxParams& p, DeviceStream stream) {
  const Grid grid{
      .x = (p.columns + kScoreTensorKeys - 1) / kScoreTensorKeys, .y = p.kv_heads, .z = p.parts};
  return LaunchKernel(ScoreTensorKernel<kDim>, grid, kThreads, kSharedBytes<kDim>, stream, p);
}

bool IsAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Vector) == 0;
}

}  // namespace

bool ScoreTensorFits(const ScoreMaxParams& p) {
  const bool dim = p.head_dim == 64 || p.head_dim == 96 || p.head_dim == 128 || p.head_dim == 256;
  const bool rows = p.query_rows * p.group < int64_t{1} << 31;
  return dim && rows && p.q_type == Element::kBf16 && p.key_type == Element::kBf16 &&
         p.key_offsets == nullptr && IsAligned(p.q) && IsAligned(p.keys);
}

DeviceError LaunchScoreTensor(const ScoreMaxParams& p, DeviceStream stream) {
  if (!ScoreTensorFits(p)) return kInvalidConfiguration;
  if (p.head_dim == 64) return Launch<64>(p, stream);
  if (p.head_dim == 96) return Launch<96>(p, stream);
  if (p.head_dim == 128) return Launch<128>(p, stream);
  return Launch<256>(p, stream);
}

}  // namespace kvtier
