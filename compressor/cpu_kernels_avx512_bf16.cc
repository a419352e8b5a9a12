// Kernels for AVX512-BF16: products of pairs of bf16, and what goes with them. The rest is that of
// AVX-512. The dot instruction adds both products of a pair to a float, flushes denormals and does
// not look at the rounding mode. Weights are rounded to bf16 before they multiply values, their sum
// is taken before.
#ifdef __AVX512BF16__  // Flags: compressor/CMakeLists.txt; other architectures go without.

#include <immintrin.h>

#include "compressor/cpu_kernels.h"

namespace kvtier {

namespace {

constexpr int64_t kLanes = 16;
constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2OfE = 1.44269504088896341f;

typedef int32_t VecI32 __attribute__((vector_size(64)));

#define KV_INLINE inline __attribute__((always_inline))

// Lanes below `count`.
KV_INLINE __mmask16 First(int64_t count) {
  if (count >= kLanes) return 0xFFFF;
  return count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// ---------------------------------------------------------------------------------- loads

void LoadQuery(const float* from, int64_t count, float* to) {
  char* out = reinterpret_cast<char*>(to);
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512 v = _mm512_maskz_loadu_ps(First(count - i), from + i);
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(v);
    // A last single factor is stored with the 0 that fills its word.
    _mm256_mask_storeu_epi16(out + 2 * i, First(count - i + (count & 1)), rounded);
  }
}

// 16 x 16 words; four perfect shuffles of the rows transpose them.
KV_INLINE void TransposeSquare(VecI32* square) {
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    VecI32 next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shufflevector(square[i], square[i + kLanes / 2], 0, 16, 1, 17, 2, 18,
                                            3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(square[i], square[i + kLanes / 2], 8, 24, 9, 25, 10,
                                                26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = next[i];
  }
}

void LoadTransposed(const void* from, KvElement, int64_t rows, int64_t dim, float* to,
                    int64_t to_stride) {
  const char* bytes = static_cast<const char*>(from);
  const int64_t words = (dim + 1) / 2;
  const int64_t columns = (rows + kLanes - 1) / kLanes * kLanes;
  for (int64_t row = 0; row < columns; row += kLanes) {
    for (int64_t w = 0; w < words; w += kLanes) {
      VecI32 square[kLanes];
      const __mmask32 factors =
          static_cast<__mmask32>(dim - 2 * w >= 32 ? 0xFFFFFFFFu : (1u << (dim - 2 * w)) - 1);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const __mmask32 mask = row + i < rows ? factors : 0;
        square[i] = (VecI32)_mm512_maskz_loadu_epi16(mask, bytes + 2 * ((row + i) * dim + 2 * w));
      }
      TransposeSquare(square);
      const int64_t left = words - w < kLanes ? words - w : kLanes;
      for (int64_t i = 0; i < left; ++i) {
        _mm512_storeu_si512(to + (w + i) * to_stride + row, (__m512i)square[i]);
      }
    }
  }
  for (int64_t w = 0; w < words; ++w) {
    for (int64_t row = columns; row < to_stride; ++row) to[w * to_stride + row] = 0;
  }
}

void LoadValues(const void* from, KvElement, int64_t rows, int64_t dim, float* to,
                int64_t to_stride) {
  const char* bytes = static_cast<const char*>(from);
  for (int64_t row = 0; row < rows; row += 2) {
    for (int64_t d = 0; d < to_stride; d += kLanes) {
      const __mmask16 mask = First(dim - d);
      const __mmask16 second = row + 1 < rows ? mask : 0;
      const char* at = bytes + 2 * (row * dim + d);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, at + 2 * dim));
      _mm512_mask_storeu_epi32(to + row / 2 * to_stride + d, First(to_stride - d),
                               _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// ---------------------------------------------------------------------------------- multiply

KV_INLINE __m512bh Words(const float* from) { return (__m512bh)_mm512_loadu_si512(from); }
KV_INLINE __m512bh WordEverywhere(const float* from) {
  int32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return (__m512bh)_mm512_set1_epi32(word);
}

template <int kRows, int kVectors>
KV_INLINE void MultiplyTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                            float* c, int64_t c_stride, int64_t k, bool accumulate) {
  __m512 sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? _mm512_loadu_ps(c + r * c_stride + v * kLanes) : _mm512_setzero_ps();
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    __m512bh column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = Words(b + i * b_stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const __m512bh factor = WordEverywhere(a + r * a_stride + i);
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], factor, column[v]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(c + r * c_stride + v * kLanes, sum[r][v]);
    }
  }
}

// All rows of a pass over `kVectors` vectors of columns, which stay in the first-level cache.
template <int kVectors>
void MultiplyColumns(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                     int64_t c_stride, int64_t m, int64_t k, bool accumulate) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) {
    MultiplyTile<6, kVectors>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride,
                              k, accumulate);
  }
  for (; i + 2 <= m; i += 2) {
    MultiplyTile<2, kVectors>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride,
                              k, accumulate);
  }
  for (; i < m; ++i) {
    MultiplyTile<1, kVectors>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride,
                              k, accumulate);
  }
}

void Multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
              int64_t c_stride, int64_t m, int64_t n, int64_t k, bool accumulate) {
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) {
    MultiplyColumns<4>(a, a_stride, b + j, b_stride, c + j, c_stride, m, k, accumulate);
  }
  for (; j < n; j += kLanes) {
    MultiplyColumns<1>(a, a_stride, b + j, b_stride, c + j, c_stride, m, k, accumulate);
  }
}

// ---------------------------------------------------------------------------------- softmax

// 2^x for x <= 0 (and NaN), within 3e-7; 0 below -126. The integer part goes into the exponent, the
// rest, at most 1/2, through a polynomial (Cephes).
KV_INLINE __m512 Exp2(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.535336188319500e-4f);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.339887440266574e-3f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(9.618437357674640e-3f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(5.550332471162809e-2f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(2.402264791363012e-1f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(6.931472028550421e-1f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.0f));
  const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(keep, p, whole);
}

// Steps `maximum` and `sum`; weight(j, v) takes the weights of columns j and on.
// Returns the factor for what was summed before.
template <typename Weight>
KV_INLINE float Step(const float* logits, int64_t n, int64_t visible, float scale, float* maximum,
                     float* sum, Weight weight) {
  __m512 top = _mm512_set1_ps(kMinusInfinity);
  for (int64_t j = 0; j < visible; j += kLanes) {
    // Of a NaN and another number it takes the second.
    top = _mm512_mask_max_ps(top, First(visible - j), _mm512_loadu_ps(logits + j), top);
  }
  float largest = _mm512_reduce_max_ps(top) * scale;
  largest = *maximum > largest ? *maximum : largest;
  if (!(largest > kMinusInfinity)) {  // Nothing seen so far; exp(-inf + inf) would be NaN.
    for (int64_t j = 0; j < visible; ++j) *sum += logits[j] != logits[j] ? logits[j] : 0.0f;
    for (int64_t j = 0; j < n; j += kLanes) weight(j, _mm512_setzero_ps());
    return 1;
  }
  const __m512 factor_of_logit = _mm512_set1_ps(scale * kLog2OfE);
  const __m512 shift = _mm512_set1_ps(largest * kLog2OfE);
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < n; j += kLanes) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(logits + j), factor_of_logit, shift);
    const __m512 v = _mm512_maskz_mov_ps(First(visible - j), Exp2(x));
    weight(j, v);
    total = _mm512_add_ps(total, v);
  }
  float factor = 1;
  if (*maximum != largest) {
    factor = __builtin_expf(*maximum - largest);
    *sum *= factor;
    *maximum = largest;
  }
  *sum += _mm512_reduce_add_ps(total);
  return factor;
}

void SoftmaxStep(float* logits, int64_t n, int64_t visible, float scale, float* maximum, float* sum,
                 float* out, int64_t out_size) {
  char* const words = reinterpret_cast<char*>(logits);  // Written behind what is read.
  const float factor = Step(
      logits, n, visible, scale, maximum,
      sum, [=](int64_t j, __m512 v) __attribute__((always_inline)) {
        _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(words + 2 * j),
                            (__m256i)_mm512_cvtneps_pbh(v));
      });
  if (factor == 1) return;
  const __m512 factors = _mm512_set1_ps(factor);
  for (int64_t d = 0; d < out_size; d += kLanes) {
    _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), factors));
  }
}

void NormaliserStep(const float* logits, int64_t n, int64_t visible, float scale, float* maximum,
                    float* sum) {
  Step(logits, n, visible, scale, maximum, sum,
       [](int64_t, __m512) __attribute__((always_inline)){});
}

}  // namespace

// Called only where the machine has the instructions: nothing of this file runs elsewhere.
void UseBf16Products(CpuKernels* kernels);
void UseBf16Products(CpuKernels* kernels) {
  kernels->name = "avx512_bf16";
  kernels->factors_per_word = 2;
  kernels->load_query = LoadQuery;
  kernels->load_transposed = LoadTransposed;
  kernels->load_values = LoadValues;
  kernels->multiply = Multiply;
  kernels->softmax_step = SoftmaxStep;
  kernels->normaliser_step = NormaliserStep;
}

}  // namespace kvtier

#endif  // __AVX512BF16__
