#include "base/half.h"
#include "cuda/grid_stride.h"
#include "cuda/math/softmax.h"
#include "cuda/merge_attention.h"
#include "cuda/vector.h"

namespace kvtier {
namespace {

constexpr int64_t kElements = 8;  // Of a vector.

// Both bf16 halves of a word, each the weighted sum of those of two words.
KVTIER_DEVICE uint32_t MixWords(uint32_t a, float share, uint32_t b) {
  const auto mix = [share](uint32_t x, uint32_t y) {
    const float mixed = share * half_internal::BfloatBitsToFloat(static_cast<uint16_t>(x)) +
                        (1 - share) * half_internal::BfloatBitsToFloat(static_cast<uint16_t>(y));
    return uint32_t{half_internal::FloatToBfloatBits(mixed)};
  };
  return mix(a & 0xFFFF, b & 0xFFFF) | mix(a >> 16, b >> 16) << 16;
}

KVTIER_KERNEL void MergeAttentionKernel(MergeAttentionParams p) {
  const int64_t head_vectors = p.head_dim / kElements;
  const int64_t count = p.rows * p.heads * head_vectors;
  const auto* part = static_cast<const Vector*>(p.part);
  auto* out = static_cast<Vector*>(p.out);
  for (int64_t i = FirstIndex(); i < count; i += IndexStep()) {
    const int64_t row_of_head = i / head_vectors;
    const int64_t head = row_of_head % p.heads;
    const int64_t at = head * p.rows + row_of_head / p.heads;
    const float share = PartShare(p.part_lse[at], p.out_lse[at]);
    const Vector a = LoadVector(part + i);
    Vector b = LoadVector(out + i);
    KVTIER_UNROLL
    for (int word = 0; word < 4; ++word) {
      b.words[word] = MixWords(a.words[word], share, b.words[word]);
    }
    StoreVector(out + i, b);
  }
}

}  // namespace

DeviceError LaunchMergeAttention(const MergeAttentionParams& p, DeviceStream stream) {
  return LaunchKernel(MergeAttentionKernel, StrideGrid(p.rows * p.heads * (p.head_dim / kElements)),
                      kStrideThreads, 0, stream, p);
}

}  // namespace kvtier
