// What attention and scoring on the CPU share: where keys lie, how queries are ordered, and which
// kernels multiply them. Plain functions of their arguments: any thread may call.
#ifndef KVTIER_COMPRESSOR_CPU_TILES_H_
#define KVTIER_COMPRESSOR_CPU_TILES_H_

#include <cstddef>
#include <cstdint>

#include "compressor/backend.h"
#include "compressor/cpu_kernels.h"
#include "compressor/scratch_pool.h"
#include "compressor/thread_pool.h"
#include "kvcache/row_codec.h"

namespace kvtier {

// What an operation works with. Does not own.
struct CpuResources {
  ThreadPool& pool;
  ScratchPool& scratch;
  const CpuKernels& kernels;                  // fp32 factors
  const CpuKernels* bf16_products = nullptr;  // bf16 factors; null: not wanted or not possible

  // For products of activations with rows of a cache of `dtype`.
  const CpuKernels& ProductsWith(DType dtype) const {
    return dtype == DType::kBf16 && bf16_products != nullptr ? *bf16_products : kernels;
  }
};

inline int64_t DivideUp(int64_t count, int64_t by) { return (count + by - 1) / by; }
inline int64_t PadUp(int64_t count) { return DivideUp(count, kKernelPad) * kKernelPad; }

inline KvElement ElementOf(DType dtype) {
  return dtype == DType::kF32 ? KvElement::kF32
                              : (dtype == DType::kF16 ? KvElement::kF16 : KvElement::kBf16);
}

// REQUIRES: a lossy codec.
inline KvCode CodeOf(CodecId codec) {
  return codec == CodecId::kInt8 ? KvCode::kInt8 : KvCode::kInt4;
}
// Bytes of one row's codes and scales. REQUIRES: a lossy codec.
inline int64_t CodeRowBytes(CodecId codec, int64_t dim) {
  return static_cast<int64_t>(FindRowCodec(codec)->code_bytes(static_cast<uint32_t>(dim)));
}
inline int64_t CodeScaleBytes(CodecId codec) {
  return static_cast<int64_t>(FindRowCodec(codec)->scale_bytes());
}

inline constexpr int64_t kSeenByAll = int64_t{1} << 40;

// Some keys (and values) that lie together, of one KV head. Query row i of the pass sees its rows
// from `hidden_to_first + i` on (a window; from the first one on where that is not positive) up to
// the first `seen_by_first + i`, all of them at most.
struct KeyPiece {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;  // Null: only keys are of interest.
  // How they are stored; what their scales are if not kRaw.
  CodecId codec = CodecId::kRaw;
  const std::byte* key_scales = nullptr;
  const std::byte* value_scales = nullptr;
  int64_t rows = 0;
  int64_t seen_by_first = 0;
  int64_t hidden_to_first = -kSeenByAll;

  // The end of the rows of [begin, end) that query row `row` sees, counted from `begin`.
  int64_t SeenFrom(int64_t begin, int64_t end, int64_t row) const {
    const int64_t seen = seen_by_first + row - begin;
    return seen < 0 ? 0 : (seen < end - begin ? seen : end - begin);
  }
};

// Rows [begin, end) of a head of `layer`.
inline KeyPiece PieceOf(const KvLayerView& layer, int64_t head, int64_t begin, int64_t end,
                        int64_t seen_by_first) {
  const int64_t at = (head * layer.capacity + begin) * layer.head_dim * DTypeBytes(layer.dtype);
  return {.keys = static_cast<const std::byte*>(layer.keys) + at,
          .values =
              layer.values == nullptr ? nullptr : static_cast<const std::byte*>(layer.values) + at,
          .rows = end - begin,
          .seen_by_first = seen_by_first};
}

// The queries of one KV head, in the order of tiles: query = row of the pass * group + head of the
// group, so that a causal tile spans few rows. Query `query` of head `head`, [dim] floats.
inline const float* QueryAt(const TensorView& q, int64_t head, int64_t group, int64_t dim,
                            int64_t query) {
  return static_cast<const float*>(q.data) + query / group * q.cols +
         (head * group + query % group) * dim;
}

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_TILES_H_
