#include <cstddef>
#include <cstdint>

#include "base/half.h"
#include "cuda/math/row_encode.h"
#include "cuda/pack_rows.h"
#include "cuda/vector.h"

namespace kvtier {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr uint16_t kProtectedScoreBits = 0x7C00;  // +inf

KVTIER_DEVICE int Lane() { return ThreadIndex() % kWarpThreads; }

// The block that row `row` of the launch belongs to.
KVTIER_DEVICE int64_t FindBlock(const PackRowsParams& p, int64_t row) {
  int64_t begin = 0;
  int64_t end = p.block_count - 1;
  while (begin < end) {
    const int64_t middle = (begin + end + 1) / 2;
    if (p.blocks[middle].first_row <= row) {
      begin = middle;
    } else {
      end = middle - 1;
    }
  }
  return begin;
}

// Word: what a lane moves at once.
template <typename Word>
KVTIER_DEVICE void CopyWords(const void* from, void* to, int64_t bytes) {
  for (int64_t i = Lane(); i < bytes / static_cast<int64_t>(sizeof(Word)); i += kWarpThreads) {
    if constexpr (sizeof(Word) == sizeof(Vector)) {
      StoreVector(static_cast<Word*>(to) + i, LoadVector(static_cast<const Word*>(from) + i));
    } else {
      static_cast<Word*>(to)[i] = static_cast<const Word*>(from)[i];
    }
  }
}

KVTIER_DEVICE void CopyRow(const void* from, void* to, int64_t bytes) {
  const auto all = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) |
                   static_cast<uintptr_t>(bytes);
  if (all % sizeof(Vector) == 0) {
    CopyWords<Vector>(from, to, bytes);
  } else {
    CopyWords<uint16_t>(from, to, bytes);
  }
}

// False: the row has an element that is not finite, or a range that its scales cannot hold. The
// same for all lanes.
KVTIER_DEVICE bool EncodeRow(const PackRowsParams& p, const void* row, std::byte* codes,
                             std::byte* scales_to) {
  float minimum = LoadElement(row, 0, p.type);
  float maximum = minimum;
  float nothing = 0;  // NaN as soon as one element is not finite.
  for (int64_t d = Lane(); d < p.head_dim; d += kWarpThreads) {
    const float x = LoadElement(row, d, p.type);
    minimum = x < minimum ? x : minimum;
    maximum = x > maximum ? x : maximum;
    nothing += x * 0.0f;
  }
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const float low = ShuffleXor(minimum, mask);
    const float high = ShuffleXor(maximum, mask);
    minimum = low < minimum ? low : minimum;
    maximum = high > maximum ? high : maximum;
    nothing += ShuffleXor(nothing, mask);
  }
  if (nothing != 0) return false;
  const bool int8 = p.code == RowCode::kInt8;
  const RowScales scales = int8 ? Int8Scales(minimum, maximum) : Int4Scales(minimum, maximum);
  if (!scales.fits) return false;
  if (int8) {
    for (int64_t d = Lane(); d < p.head_dim; d += kWarpThreads) {
      reinterpret_cast<int8_t*>(codes)[d] = Int8Code(scales, LoadElement(row, d, p.type));
    }
  } else {
    for (int64_t i = Lane(); 2 * i < p.head_dim; i += kWarpThreads) {
      const int high = Int4Code(scales, LoadElement(row, 2 * i, p.type));
      const int low =
          2 * i + 1 < p.head_dim ? Int4Code(scales, LoadElement(row, 2 * i + 1, p.type)) : 0;
      reinterpret_cast<uint8_t*>(codes)[i] = static_cast<uint8_t>(high << 4 | low);
    }
  }
  if (Lane() == 0) {
    auto* const to = reinterpret_cast<uint16_t*>(scales_to);
    to[0] = scales.scale;
    if (!int8) to[1] = scales.minimum;
  }
  return true;
}

// What lies between an array and the next one.
KVTIER_DEVICE void ZeroGap(const PackRowsParams& p, int64_t begin, int64_t bytes) {
  const int64_t end = (bytes + kPackAlignment - 1) / kPackAlignment * kPackAlignment;
  for (int64_t i = bytes + Lane(); i < end; i += kWarpThreads) p.out[begin + i] = std::byte{0};
}

KVTIER_DEVICE void ZeroGaps(const PackRowsParams& p, const PackBlock& block) {
  const int64_t codes = block.rows * RowCodeBytes(p.code, p.type, p.head_dim);
  ZeroGap(p, block.keys, codes);
  ZeroGap(p, block.values, codes);
  ZeroGap(p, block.log_scores, block.rows * static_cast<int64_t>(sizeof(uint16_t)));
  if (block.positions >= 0) {
    ZeroGap(p, block.positions, block.rows * static_cast<int64_t>(sizeof(uint32_t)));
  }
  if (p.code != RowCode::kRaw) {
    const int64_t scales = block.rows * RowScaleBytes(p.code);
    ZeroGap(p, block.key_scales, scales);
    ZeroGap(p, block.value_scales, scales);
  }
}

KVTIER_DEVICE uint16_t StoredScoreBits(float log_score) {
  const float low = log_score < -kHalfMax ? -kHalfMax : log_score;
  return half_internal::FloatToHalfBits(low > kHalfMax ? kHalfMax : low);
}

KVTIER_KERNEL void PackRowsKernel(PackRowsParams p) {
  const int64_t row = int64_t{BlockX()} * kWarps + ThreadIndex() / kWarpThreads;
  if (row >= p.rows) return;  // The whole warp.
  const PackBlock block = p.blocks[FindBlock(p, row)];
  const int64_t i = row - block.first_row;
  const bool is_protected = i < block.protected_rows;
  const int64_t token = is_protected ? 0 : p.tokens[block.first_token + i - block.protected_rows];
  const int64_t position = is_protected ? i : p.protected_tokens + token;
  const int64_t row_bytes = p.head_dim * ElementBytes(p.type);
  const int64_t from = (block.head * p.capacity + position) * row_bytes;
  const std::byte* const key = static_cast<const std::byte*>(p.keys) + from;
  const std::byte* const value = static_cast<const std::byte*>(p.values) + from;
  const int64_t at = i * RowCodeBytes(p.code, p.type, p.head_dim);
  std::byte* const key_to = p.out + block.keys + at;
  std::byte* const value_to = p.out + block.values + at;
  if (p.code == RowCode::kRaw) {
    CopyRow(key, key_to, row_bytes);
    CopyRow(value, value_to, row_bytes);
  } else {
    const int64_t scale_at = i * RowScaleBytes(p.code);
    const bool key_fits = EncodeRow(p, key, key_to, p.out + block.key_scales + scale_at);
    const bool value_fits = EncodeRow(p, value, value_to, p.out + block.value_scales + scale_at);
    if (Lane() == 0) {
      if (!key_fits) AtomicMax(&p.refused->key, ~static_cast<uint32_t>(row));
      if (!value_fits) AtomicMax(&p.refused->value, ~static_cast<uint32_t>(row));
    }
  }
  if (Lane() == 0) {
    reinterpret_cast<uint16_t*>(p.out + block.log_scores)[i] =
        is_protected ? kProtectedScoreBits : StoredScoreBits(p.scores[block.first_score + token]);
    if (block.positions >= 0) {
      reinterpret_cast<uint32_t*>(p.out + block.positions)[i] = static_cast<uint32_t>(position);
    }
  }
  if (i + 1 == block.rows) ZeroGaps(p, block);
}

}  // namespace

DeviceError LaunchPackRows(const PackRowsParams& p, DeviceStream stream) {
  return LaunchKernel(PackRowsKernel, Grid{.x = (p.rows + kWarps - 1) / kWarps}, kThreads, 0,
                      stream, p);
}

}  // namespace kvtier
