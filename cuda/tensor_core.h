// The tensor cores' product of two small bf16 matrices held by a warp, and the maximum that keeps
// NaNs: words of device code beyond cuda/simt.h, with an emulation of the same layout.
#ifndef KVTIER_CUDA_TENSOR_CORE_H_
#define KVTIER_CUDA_TENSOR_CORE_H_

#include <cstdint>

#include "base/half.h"
#include "cuda/simt.h"

namespace kvtier {

// d [16, 8] += a [16, 16] b [16, 8], in fp32; all 32 lanes take part. With r = lane / 4 and
// c = lane % 4 * 2, and two bf16 in a word (the lower column or row of b in the lower half):
//   a[0] row r, columns c, c+1;  a[1] row r + 8;  a[2] columns c+8, c+9;  a[3] both
//   b[0] rows c, c+1 of column r;  b[1] rows c+8, c+9
//   d[0], d[1] row r, columns c, c+1;  d[2], d[3] row r + 8
KVTIER_DEVICE void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  struct Operands {
    uint32_t a[4];
    uint32_t b[2];
  };
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  Operands lanes[kWarpThreads];
  host_simt::WarpExchange(&mine, sizeof(mine), lanes);
  const auto half = [](uint32_t word, int k) {
    return half_internal::BfloatBitsToFloat(
        static_cast<uint16_t>(k % 2 == 0 ? word & 0xFFFFu : word >> 16));
  };
  const int lane = ThreadIndex() % kWarpThreads;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i < 2 ? 0 : 8);
    const int column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const uint32_t word_a = lanes[row % 8 * 4 + k % 8 / 2].a[(k < 8 ? 0 : 2) + row / 8];
      const uint32_t word_b = lanes[column * 4 + k % 8 / 2].b[k < 8 ? 0 : 1];
      sum += half(word_a, k) * half(word_b, k);
    }
    d[i] += sum;
  }
#endif
}

// Four 8 x 8 matrices of 16-bit elements out of shared memory, transposed: lane l gives the address
// of row l % 8 of matrix l / 8 (16 bytes, aligned to 16); r[m] holds of matrix m the elements of
// column l / 4, rows l % 4 * 2 (lower half) and the next. What MultiplyAdd takes as b, from
// row-major values. All 32 lanes take part.
KVTIER_DEVICE void LoadTransposed(uint32_t (&r)[4], const void* row) {
#if defined(__CUDACC__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  const uint16_t* rows[kWarpThreads];
  host_simt::WarpExchange(&row, sizeof(row), rows);
  host_simt::CheckAligned(row, 16);
  const int lane = ThreadIndex() % kWarpThreads;
  for (int m = 0; m < 4; ++m) {
    const uint32_t lower = rows[m * 8 + lane % 4 * 2][lane / 4];
    const uint32_t upper = rows[m * 8 + lane % 4 * 2 + 1][lane / 4];
    r[m] = lower | upper << 16;
  }
#endif
}

// Two floats rounded to bf16 (nearest even), `lower` in the lower half. Which NaN becomes of a NaN
// is not specified.
KVTIER_DEVICE uint32_t PackBf16(float lower, float upper) {
#if defined(__CUDA_ARCH__)
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(upper), "f"(lower));
  return both;
#else
  return uint32_t{half_internal::FloatToBfloatBits(lower)} |
         uint32_t{half_internal::FloatToBfloatBits(upper)} << 16;
#endif
}

// NaN if either is.
KVTIER_DEVICE float MaxOrNan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a != a ? a : b != b ? b : a > b ? a : b;
#endif
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_TENSOR_CORE_H_
