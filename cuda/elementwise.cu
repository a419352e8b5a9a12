#include <cmath>
#include <cstdint>

#include "cuda/elementwise.h"
#include "cuda/grid_stride.h"
#include "cuda/math/activation.h"
#include "cuda/vector.h"

namespace kvtier {
namespace {

constexpr int kThreads = kStrideThreads;

KVTIER_KERNEL void EmbedKernel(EmbedParams p) {
  for (int64_t i = FirstIndex(); i < p.rows * p.cols; i += IndexStep()) {
    const int64_t from = int64_t{p.ids[i / p.cols]} * p.cols + i % p.cols;
    StoreElement(p.y, i, p.type, LoadElement(p.table, from, p.table_type) * p.scale);
  }
}

// The sum over the block, to every thread. `scratch` has a float per warp; all threads call.
KVTIER_DEVICE float BlockSum(float value, float* scratch) {
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  if (ThreadIndex() % kWarpThreads == 0) scratch[ThreadIndex() / kWarpThreads] = value;
  BlockSync();
  float sum = 0;
  for (int w = 0; w < ThreadCount() / kWarpThreads; ++w) sum += scratch[w];
  return sum;
}

KVTIER_KERNEL void RmsNormKernel(RmsNormParams p) {
  const int64_t row = int64_t{BlockX()} * p.cols;
  float squares = 0;
  for (int64_t c = ThreadIndex(); c < p.cols; c += ThreadCount()) {
    const float x = LoadElement(p.x, row + c, p.type);
    squares += x * x;
  }
  const float mean = BlockSum(squares, static_cast<float*>(SharedMemory())) / float(p.cols);
  const float factor = 1.0f / sqrtf(mean + p.epsilon);
  for (int64_t c = ThreadIndex(); c < p.cols; c += ThreadCount()) {
    StoreElement(p.y, row + c, p.type, LoadElement(p.x, row + c, p.type) * factor * p.weight[c]);
  }
}

KVTIER_KERNEL void AddKernel(AddParams p) {
  for (int64_t i = FirstIndex(); i < p.rows * p.cols; i += IndexStep()) {
    const float y = LoadElement(p.y, p.one_row ? i % p.cols : i, p.type);
    StoreElement(p.x, i, p.type, LoadElement(p.x, i, p.type) + y);
  }
}

KVTIER_KERNEL void GateMulKernel(GateMulParams p) {
  for (int64_t i = FirstIndex(); i < p.count; i += IndexStep()) {
    const float gate = LoadElement(p.gate, i, p.type);
    const float gated = p.gelu ? GeluTanh(gate) : Silu(gate);
    StoreElement(p.y, i, p.type, gated * LoadElement(p.up, i, p.type));
  }
}

KVTIER_KERNEL void RopeKernel(RopeParams p) {
  const int64_t row_pairs = p.heads * p.pairs;
  const int64_t first_position = p.position_at == nullptr ? p.first_position : *p.position_at;
  for (int64_t i = FirstIndex(); i < p.rows * row_pairs; i += IndexStep()) {
    const int64_t row = i / row_pairs;
    const int d = static_cast<int>(i % p.pairs);
    const int64_t first = (i - d) * 2 + d;  // i - d: pairs of the rows and heads before this one.
    const float position = static_cast<float>(first_position + row);
    const RotatedPair pair =
        Rotate(LoadElement(p.x, first, p.type), LoadElement(p.x, first + p.pairs, p.type), position,
               p.frequencies[d], p.scaling);
    StoreElement(p.x, first, p.type, pair.first);
    StoreElement(p.x, first + p.pairs, p.type, pair.second);
  }
}

KVTIER_KERNEL void AppendKvKernel(AppendKvParams p) {
  const int64_t row_width = p.kv_heads * p.head_dim;
  const int64_t at = p.row_at == nullptr ? p.at : *p.row_at;
  for (int64_t i = FirstIndex(); i < p.rows * row_width; i += IndexStep()) {
    const int64_t row = i / row_width;
    const int64_t head = i % row_width / p.head_dim;
    const int64_t to = (head * p.capacity + at + row) * p.head_dim + i % p.head_dim;
    StoreElement(p.keys, to, p.layer_type, LoadElement(p.k, i, p.type));
    StoreElement(p.values, to, p.layer_type, LoadElement(p.v, i, p.type));
  }
}

// Word: what a thread moves at once; row_bytes and all pointers are multiples of its size.
template <typename Word>
KVTIER_KERNEL void GatherRowsKernel(GatherRowsParams p) {
  const int64_t row_words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = FirstIndex(); i < p.rows * row_words; i += IndexStep()) {
    const int64_t from = int64_t{p.positions[i / row_words]} * row_words + i % row_words;
    if constexpr (sizeof(Word) == sizeof(Vector)) {
      StoreVector(static_cast<Word*>(p.keys_out) + i,
                  LoadVector(static_cast<const Word*>(p.keys) + from));
      StoreVector(static_cast<Word*>(p.values_out) + i,
                  LoadVector(static_cast<const Word*>(p.values) + from));
    } else {
      static_cast<Word*>(p.keys_out)[i] = static_cast<const Word*>(p.keys)[from];
      static_cast<Word*>(p.values_out)[i] = static_cast<const Word*>(p.values)[from];
    }
  }
}

KVTIER_KERNEL void ConvertKernel(ConvertParams p) {
  for (int64_t i = FirstIndex(); i < p.count; i += IndexStep()) {
    StoreElement(p.to, i, p.to_type, LoadElement(p.from, i, p.from_type));
  }
}

bool IsMultiple(const GatherRowsParams& p, uintptr_t bytes) {
  const auto all = reinterpret_cast<uintptr_t>(p.keys) | reinterpret_cast<uintptr_t>(p.values) |
                   reinterpret_cast<uintptr_t>(p.keys_out) |
                   reinterpret_cast<uintptr_t>(p.values_out) | static_cast<uintptr_t>(p.row_bytes);
  return all % bytes == 0;
}

}  // namespace

DeviceError LaunchEmbed(const EmbedParams& p, DeviceStream stream) {
  return LaunchKernel(EmbedKernel, StrideGrid(p.rows * p.cols), kThreads, 0, stream, p);
}

DeviceError LaunchRmsNorm(const RmsNormParams& p, DeviceStream stream) {
  const size_t shared = kThreads / kWarpThreads * sizeof(float);
  return LaunchKernel(RmsNormKernel, Grid{.x = p.rows}, kThreads, shared, stream, p);
}

DeviceError LaunchAdd(const AddParams& p, DeviceStream stream) {
  return LaunchKernel(AddKernel, StrideGrid(p.rows * p.cols), kThreads, 0, stream, p);
}

DeviceError LaunchGateMul(const GateMulParams& p, DeviceStream stream) {
  return LaunchKernel(GateMulKernel, StrideGrid(p.count), kThreads, 0, stream, p);
}

DeviceError LaunchRope(const RopeParams& p, DeviceStream stream) {
  return LaunchKernel(RopeKernel, StrideGrid(p.rows * p.heads * p.pairs), kThreads, 0, stream, p);
}

DeviceError LaunchAppendKv(const AppendKvParams& p, DeviceStream stream) {
  return LaunchKernel(AppendKvKernel, StrideGrid(p.rows * p.kv_heads * p.head_dim), kThreads, 0,
                      stream, p);
}

DeviceError LaunchGatherRows(const GatherRowsParams& p, DeviceStream stream) {
  if (IsMultiple(p, 16)) {
    return LaunchKernel(GatherRowsKernel<Vector>, StrideGrid(p.rows * p.row_bytes / 16), kThreads,
                        0, stream, p);
  }
  return LaunchKernel(GatherRowsKernel<uint16_t>, StrideGrid(p.rows * p.row_bytes / 2), kThreads, 0,
                      stream, p);
}

DeviceError LaunchConvert(const ConvertParams& p, DeviceStream stream) {
  return LaunchKernel(ConvertKernel, StrideGrid(p.count), kThreads, 0, stream, p);
}

}  // namespace kvtier
