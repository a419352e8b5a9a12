#include <cmath>
#include <cstdint>

#include "cuda/attention_tensor.h"
#include "cuda/key_row.h"
#include "cuda/math/softmax.h"
#include "cuda/tensor_core.h"
#include "cuda/vector.h"

namespace kvtier {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kWarpRows = 16;  // Query rows of a warp.
constexpr int kKeys = 64;      // Of a tile.
static_assert(kKeyTileMax % kKeys == 0, "parts of a plan are whole tiles");

constexpr int kVectorElements = 8;  // Of a Vector.

// Words (two elements) of a row in shared memory: 16 bytes more than the row, so that the eight
// rows that a warp reads at once lie in different banks.
template <int kDim>
constexpr int kRowWords = kDim / 2 + 4;

template <int kDim>
constexpr size_t kSharedBytes = kKeys * sizeof(KeyRow) +
                                2 * kKeys* kRowWords<kDim> * sizeof(uint32_t);

static_assert(kKeys * sizeof(KeyRow) % sizeof(Vector) == 0, "tiles behind it are aligned");

// What four warps with the same query rows leave in shared memory, where the tiles were.
template <int kDim>
constexpr size_t kWarpPartBytes = kWarps* kWarpRows*(kDim + 2) * sizeof(float);

// A query row of this lane: what it sees, and the state of its softmax.
struct Row {
  int64_t keys_begin = 0;
  int64_t keys_end = 0;  // 0: a row past the last one, which sees nothing.
  float largest = -INFINITY;
  float sum = 0;  // Over this lane's columns; the four lanes of a row add up at the end.
};

KVTIER_DEVICE Row MakeRow(const AttentionParams& p, const AttentionItem& item, int64_t row) {
  Row r;
  if (row >= p.query_rows * p.group) return r;
  const int64_t end = KeysEnd(HeadKeys(p, item.head), p.query_rows, row / p.group);
  r.keys_begin = KeysBegin(end, p.window);
  r.keys_end = end < item.key_end ? end : item.key_end;
  return r;
}

KVTIER_DEVICE int64_t QueryAt(const AttentionParams& p, int64_t head, int64_t row, int dim) {
  return (row / p.group * p.kv_heads * p.group + head * p.group + row % p.group) * dim;
}

// This warp's 16 query rows as the products' left side.
template <int kDim>
KVTIER_DEVICE void LoadQueries(const AttentionParams& p, const AttentionItem& item, int64_t first,
                               uint32_t (&q)[kDim / 16][4]) {
  const int lane = ThreadIndex() % kWarpThreads;
  KVTIER_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + half * 8 + lane / 4;
    const bool inside = row < p.query_rows * p.group;
    const int64_t at = inside ? QueryAt(p, item.head, row, kDim) / 2 : 0;
    const auto* words = static_cast<const uint32_t*>(p.q) + at;
    KVTIER_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      q[k][half] = inside ? words[k * 8 + lane % 4] : 0;
      q[k][half + 2] = inside ? words[k * 8 + lane % 4 + 4] : 0;
    }
  }
}

// Eight elements of a row from element d on, as bf16.
KVTIER_DEVICE Vector LoadEight(const char* codes, const char* scales, RowCode code, int d) {
  if (code == RowCode::kRaw) return LoadVector(codes + d * 2);
  Vector vector;
  KVTIER_UNROLL
  for (int i = 0; i < 4; ++i) {
    vector.words[i] = PackBf16(DecodeElement(codes, scales, code, Element::kBf16, d + 2 * i),
                               DecodeElement(codes, scales, code, Element::kBf16, d + 2 * i + 1));
  }
  return vector;
}

// Keys (and values) of `count` rows into their tiles; zeros behind them.
template <int kDim, bool kValues>
KVTIER_DEVICE void LoadTiles(const KeyRow* rows, int count, uint32_t* keys, uint32_t* values) {
  constexpr int kRowVectors = kDim / kVectorElements;
  for (int i = ThreadIndex(); i < kKeys * kRowVectors; i += kThreads) {
    const int key = i / kRowVectors;
    const int d = i % kRowVectors * kVectorElements;
    Vector k = {};
    Vector v = {};
    if (key < count) {
      const KeyRow& row = rows[key];
      k = LoadEight(row.keys, row.key_scales, row.code, d);
      if constexpr (kValues) v = LoadEight(row.values, row.value_scales, row.code, d);
    }
    const int at = key * kRowWords<kDim> + d / 2;
    StoreVector(keys + at, k);
    if constexpr (kValues) StoreVector(values + at, v);
  }
}

// s[n] = logits (base 2) of the warp's rows and keys n * 8 ... of those at `keys`, the first of
// which is key `begin` of the head; -inf where unseen.
template <int kDim, int kTiles>
KVTIER_DEVICE void Logits(const uint32_t (&q)[kDim / 16][4], const uint32_t* keys, float scale,
                          const Row (&rows)[2], int64_t begin, float (&s)[kTiles][4]) {
  const int lane = ThreadIndex() % kWarpThreads;
  KVTIER_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    KVTIER_UNROLL
    for (int i = 0; i < 4; ++i) s[n][i] = 0;
    const uint32_t* key = keys + (n * 8 + lane / 4) * kRowWords<kDim> + lane % 4;
    KVTIER_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      const uint32_t b[2] = {key[k * 8], key[k * 8 + 4]};
      MultiplyAdd(s[n], q[k], b);
    }
    KVTIER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t at = begin + n * 8 + lane % 4 * 2 + i % 2;
      const Row& row = rows[i / 2];
      const bool seen = at >= row.keys_begin && at < row.keys_end;
      s[n][i] = seen ? s[n][i] * scale : MinusInfinity();
    }
  }
}

// Logits become weights. factor[half]: what sums and outputs so far are multiplied by.
template <int kTiles>
KVTIER_DEVICE void Softmax(Row (&rows)[2], float (&s)[kTiles][4], float (&factor)[2]) {
  KVTIER_UNROLL
  for (int half = 0; half < 2; ++half) {
    Row& row = rows[half];
    float next = row.largest;
    KVTIER_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      next = fmaxf(next, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
    }
    next = fmaxf(next, ShuffleXor(next, 1));  // The four lanes of a row.
    next = fmaxf(next, ShuffleXor(next, 2));
    factor[half] = SoftmaxWeight(row.largest, next);
    float sum = 0;
    KVTIER_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      KVTIER_UNROLL
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        s[n][i] = SoftmaxWeight(s[n][i], next);
        sum += s[n][i];
      }
    }
    row.sum = row.sum * factor[half] + sum;
    row.largest = next;
  }
}

// out[n] = out[n] * factor + weights x values, columns n * 8 ...
template <int kDim, int kTiles>
KVTIER_DEVICE void Accumulate(const float (&s)[kTiles][4], const uint32_t* values,
                              const float (&factor)[2], float (&out)[kDim / 8][4]) {
  const int lane = ThreadIndex() % kWarpThreads;
  KVTIER_UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    KVTIER_UNROLL
    for (int i = 0; i < 4; ++i) out[n][i] *= factor[i / 2];
  }
  KVTIER_UNROLL
  for (int k = 0; k < kTiles / 2; ++k) {
    // The products' results lie as their left side must: two tiles of 8 keys make one of 16.
    const uint32_t a[4] = {PackBf16(s[2 * k][0], s[2 * k][1]), PackBf16(s[2 * k][2], s[2 * k][3]),
                           PackBf16(s[2 * k + 1][0], s[2 * k + 1][1]),
                           PackBf16(s[2 * k + 1][2], s[2 * k + 1][3])};
    // Matrices: keys 0-7 and 8-15 of the 16, columns 0-7; then both of columns 8-15.
    const int key = k * 16 + lane / 8 % 2 * 8 + lane % 8;
    KVTIER_UNROLL
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t v[4];
      LoadTransposed(v, values + key * kRowWords<kDim> + (n + lane / 16) * 4);
      const uint32_t b0[2] = {v[0], v[1]};
      const uint32_t b1[2] = {v[2], v[3]};
      MultiplyAdd(out[n], a, b0);
      MultiplyAdd(out[n + 1], a, b1);
    }
  }
}

// Where the results of a query row go: a part, the output, or nowhere (a row past the last one).
struct RowOut {
  float* part = nullptr;
  uint32_t* whole = nullptr;  // Two elements to a word.
};

KVTIER_DEVICE RowOut FindOut(const AttentionParams& p, const AttentionItem& item, int query_tile,
                             int in_tile, int dim) {
  const int64_t row = item.first_row + in_tile;
  RowOut out;
  if (item.slot >= 0) {
    out.part = p.part_out + (item.slot * query_tile + in_tile) * dim;
  } else if (row < p.query_rows * p.group) {
    out.whole = static_cast<uint32_t*>(p.out) + QueryAt(p, item.head, row, dim) / 2;
  }
  return out;
}

// Elements d and d + 1; d is even.
KVTIER_DEVICE void StorePair(const RowOut& out, int d, float lower, float upper) {
  if (out.part != nullptr) {
    out.part[d] = lower;
    out.part[d + 1] = upper;
  } else if (out.whole != nullptr) {
    out.whole[d / 2] = PackBf16(lower, upper);
  }
}

KVTIER_DEVICE void StoreLse(const AttentionParams& p, const AttentionItem& item, int query_tile,
                            int in_tile, float lse) {
  const int64_t row = item.first_row + in_tile;
  const int64_t rows = p.query_rows * p.group;
  if (item.slot >= 0) {
    p.part_lse[item.slot * query_tile + in_tile] = lse;
  } else if (p.lse != nullptr && row < rows) {
    p.lse[item.head * rows + row] = lse;
  }
}

// Merges what the four warps made of the same query rows, each over its keys, in their order.
// `memory` has kWarpPartBytes, and nobody reads it any more.
template <int kDim, bool kValues, int kOutTiles>
KVTIER_DEVICE void MergeWarps(const AttentionParams& p, const AttentionItem& item,
                              const Row (&rows)[2], const float (&out)[kOutTiles][4],
                              float* memory) {
  const int lane = ThreadIndex() % kWarpThreads;
  const int warp = ThreadIndex() / kWarpThreads;
  float* largest = memory;                     // [kWarps, kWarpRows]
  float* sums = largest + kWarps * kWarpRows;  // [kWarps, kWarpRows]
  float* outs = sums + kWarps * kWarpRows;     // [kWarps, kWarpRows, kDim]
  KVTIER_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = warp * kWarpRows + half * 8 + lane / 4;
    if (lane % 4 == 0) {
      largest[row] = rows[half].largest;
      sums[row] = rows[half].sum;
    }
    if constexpr (kValues) {
      KVTIER_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        float* to = outs + row * kDim + n * 8 + lane % 4 * 2;
        to[0] = out[n][half * 2];
        to[1] = out[n][half * 2 + 1];
      }
    }
  }
  BlockSync();
  constexpr int kPairs = kValues ? kDim / 2 : 1;  // Of a row; at least one thread for its lse.
  for (int i = ThreadIndex(); i < kWarpRows * kPairs; i += kThreads) {
    const int row = i / kPairs;
    const int d = i % kPairs * 2;
    float whole = MinusInfinity();
    for (int w = 0; w < kWarps; ++w) whole = fmaxf(whole, largest[w * kWarpRows + row]);
    float sum = 0;
    float lower = 0;
    float upper = 0;
    for (int w = 0; w < kWarps; ++w) {
      const int at = w * kWarpRows + row;
      const float weight = SoftmaxWeight(largest[at], whole);
      sum += sums[at] * weight;
      if constexpr (kValues) {
        lower += outs[at * kDim + d] * weight;
        upper += outs[at * kDim + d + 1] * weight;
      }
    }
    if (d == 0) StoreLse(p, item, kWarpRows, row, LogSum2(whole, sum));
    if constexpr (kValues) {
      const float norm = sum == 0 ? 0 : 1 / sum;
      const RowOut to = FindOut(p, item, kWarpRows, row, kDim);
      StorePair(to, d, lower * norm, upper * norm);
    }
  }
}

// kRowWarps: 4, each warp has query rows of its own and all keys of a tile; or 1, all have the same
// rows and each a quarter of the keys: decoding, where a group's rows fill one warp.
template <int kDim, bool kValues, int kRowWarps>
KVTIER_KERNEL void AttentionTensorKernel(AttentionParams p) {
  constexpr int kWarpKeys = kKeys * kRowWarps / kWarps;
  constexpr int kQueryRows = kRowWarps * kWarpRows;
  static_assert(kWarpPartBytes<kDim> <= kSharedBytes<kDim> - kKeys * sizeof(KeyRow),
                "the parts of the warps fit where the tiles were");
  const AttentionItem item = SeenPart(p, p.items[BlockX()], kQueryRows);
  auto* found = static_cast<KeyRow*>(SharedMemory());                 // [kKeys]
  auto* keys = reinterpret_cast<uint32_t*>(found + kKeys);            // [kKeys, kRowWords]
  uint32_t* values = keys + (kValues ? kKeys * kRowWords<kDim> : 0);  // [kKeys, kRowWords]
  const int lane = ThreadIndex() % kWarpThreads;
  const int warp = ThreadIndex() / kWarpThreads;
  const int warp_row = warp % kRowWarps * kWarpRows;
  const int warp_key = warp / kRowWarps * kWarpKeys;
  const int64_t first = item.first_row + warp_row;
  Row rows[2] = {MakeRow(p, item, first + lane / 4), MakeRow(p, item, first + lane / 4 + 8)};
  uint32_t q[kDim / 16][4];
  LoadQueries<kDim>(p, item, first, q);
  const float scale = p.scale * kLog2E;
  float out[kValues ? kDim / 8 : 1][4] = {};
  for (int64_t begin = item.key_begin; begin < item.key_end; begin += kKeys) {
    const int64_t left = item.key_end - begin;
    const int count = static_cast<int>(left < kKeys ? left : kKeys);
    if (ThreadIndex() < count) found[ThreadIndex()] = FindKey(p, item.head, begin + ThreadIndex());
    BlockSync();  // Rows are found; the tiles before these have been read.
    LoadTiles<kDim, kValues>(found, count, keys, values);
    BlockSync();
    float s[kWarpKeys / 8][4];
    Logits<kDim>(q, keys + warp_key * kRowWords<kDim>, scale, rows, begin + warp_key, s);
    float factor[2];
    Softmax(rows, s, factor);
    if constexpr (kValues) {
      Accumulate<kDim>(s, values + warp_key * kRowWords<kDim>, factor, out);
    }
    // Rows found for the next tile overwrite what LoadTiles read before the second barrier.
  }
  KVTIER_UNROLL
  for (int half = 0; half < 2; ++half) {
    float& sum = rows[half].sum;
    sum += ShuffleXor(sum, 1);
    sum += ShuffleXor(sum, 2);
  }
  if constexpr (kRowWarps == 1) {
    BlockSync();  // The last tiles have been read.
    MergeWarps<kDim, kValues>(p, item, rows, out, reinterpret_cast<float*>(keys));
  } else {
    KVTIER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float sum = rows[half].sum;
      const int in_tile = warp_row + half * 8 + lane / 4;
      if (lane % 4 == 0) {
        StoreLse(p, item, kQueryRows, in_tile, LogSum2(rows[half].largest, sum));
      }
      if constexpr (kValues) {
        const float norm = sum == 0 ? 0 : 1 / sum;
        const RowOut to = FindOut(p, item, kQueryRows, in_tile, kDim);
        KVTIER_UNROLL
        for (int n = 0; n < kDim / 8; ++n) {
          StorePair(to, n * 8 + lane % 4 * 2, out[n][half * 2] * norm, out[n][half * 2 + 1] * norm);
        }
      }
    }
  }
}

template <int kDim, bool kValues>
DeviceError LaunchRows(const AttentionParams& p, DeviceStream stream) {
  const Grid grid{.x = p.item_count};
  if (TensorQueryTile(p) == kWarpRows) {
    return LaunchKernel(AttentionTensorKernel<kDim, kValues, 1>, grid, kThreads, kSharedBytes<kDim>,
                        stream, p);
  }
  return LaunchKernel(AttentionTensorKernel<kDim, kValues, kWarps>, grid, kThreads,
                      kSharedBytes<kDim>, stream, p);
}

template <int kDim>
DeviceError Launch(const AttentionParams& p, DeviceStream stream) {
  return p.out == nullptr ? LaunchRows<kDim, false>(p, stream) : LaunchRows<kDim, true>(p, stream);
}

bool IsAligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace

bool AttentionTensorFits(const AttentionParams& p) {
  const bool dim = p.head_dim == 64 || p.head_dim == 96 || p.head_dim == 128;
  return dim && p.q_type == Element::kBf16 && p.kv_type == Element::kBf16 && IsAligned(p.q, 4) &&
         IsAligned(p.out, 4);
}

int TensorQueryTile(const AttentionParams& p) {
  return p.query_rows * p.group <= kWarpRows ? kWarpRows : kWarps * kWarpRows;
}

bool TensorSpanFits(const KeySpan& span) {
  return span.code != RowCode::kRaw ||
         (IsAligned(span.keys, sizeof(Vector)) && IsAligned(span.values, sizeof(Vector)));
}

DeviceError LaunchAttentionTensor(const AttentionParams& p, DeviceStream stream) {
  if (!AttentionTensorFits(p)) return kInvalidConfiguration;
  const DeviceError error = p.head_dim == 64   ? Launch<64>(p, stream)
                            : p.head_dim == 96 ? Launch<96>(p, stream)
                                               : Launch<128>(p, stream);
  return error != 0 ? error : LaunchAttentionMerge(p, TensorQueryTile(p), stream);
}

}  // namespace kvtier
