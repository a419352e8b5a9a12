// The inner loops of CpuBackend, compiled once per instruction set (cpu_kernels_*.cc) from one text
// (cpu_kernels.inc) and chosen at run time. Nothing inline here: see kvtier_simd_source in
// cmake/Targets.cmake.
#ifndef KVTIER_COMPRESSOR_CPU_KERNELS_H_
#define KVTIER_COMPRESSOR_CPU_KERNELS_H_

#include <stdint.h>

namespace kvtier {

enum class KvElement { kF32, kF16, kBf16 };

// Rows of the lossy codecs: kvcache/row_codec.h says what their bytes mean.
enum class KvCode { kInt8, kInt4 };

// Every leading dimension and every `n` of multiply and column_max is a multiple of this many
// floats.
inline constexpr int64_t kKernelPad = 16;

// Queries that few_logits and few_values take at once.
inline constexpr int64_t kFewQueries = 4;

// Products take factors in words of 4 bytes: one float, or in the bf16 set a pair of bf16 (the
// first of the pair in the low half). Sums are fp32. A word that is half full ends in 0.
struct CpuKernels {
  const char* name;          // "avx512_bf16", "avx512", "avx2", "baseline"
  int64_t factors_per_word;  // 2 in the bf16 set, which takes keys and values of bf16 only; else 1

  // to[i] = from[i]
  void (*load)(const void* from, KvElement element, int64_t count, float* to);
  // Words of a query, rounded to nearest even in the bf16 set.
  void (*load_query)(const float* from, int64_t count, float* to);
  // Words of keys, transposed: to[w * to_stride + row] is word w of row `row` of [rows, dim];
  // columns [rows, to_stride) become 0.
  void (*load_transposed)(const void* from, KvElement element, int64_t rows, int64_t dim, float* to,
                          int64_t to_stride);
  // Words down the columns of values: to[w * to_stride + d] holds rows w * factors_per_word and on
  // of column d; columns [dim, to_stride) become 0.
  void (*load_values)(const void* from, KvElement element, int64_t rows, int64_t dim, float* to,
                      int64_t to_stride);
  // c[m, n] (+)= a[m, k] b[k, n]; k and the strides of a and b count words.
  void (*multiply)(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                   int64_t c_stride, int64_t m, int64_t n, int64_t k, bool accumulate);
  // For a few queries (decoding) over keys that are used once: reads them as they lie instead of
  // expanding a tile of them first. REQUIRES: rows <= kFewQueries, dim a multiple of kKernelPad.
  // logits[r, j] = q[r, dim] . keys[j, dim]; columns from n to the next multiple of kKernelPad are
  // unspecified.
  void (*few_logits)(const float* q, int64_t rows, int64_t dim, const void* keys, KvElement element,
                     int64_t n, float* logits, int64_t stride);
  // out[r, dim] += weights[r, n] values[n, dim]
  void (*few_values)(const float* weights, int64_t stride, int64_t rows, int64_t dim,
                     const void* values, KvElement element, int64_t n, float* out,
                     int64_t out_stride);
  // Rows of codes as floats, to[row * dim + d]: the bits that RowCodec::DecodeRow gives.
  void (*decode_rows)(const void* codes, const void* scales, KvCode code, int64_t rows, int64_t dim,
                      float* to);
  // few_logits and few_values over coded rows, which are not decoded for it.
  // REQUIRES: as those; dim a multiple of 2 * kKernelPad, at most 512.
  void (*few_coded_logits)(const float* q, int64_t rows, int64_t dim, const void* keys,
                           const void* scales, KvCode code, int64_t n, float* logits,
                           int64_t stride);
  void (*few_coded_values)(const float* weights, int64_t stride, int64_t rows, int64_t dim,
                           const void* values, const void* scales, KvCode code, int64_t n,
                           float* out, int64_t out_stride);
  // One step of the online softmax of one row over n (padded) more logits, of which the first
  // `visible` count: they become words of weights exp(scale * logit - new maximum), the others 0.
  // `maximum` (scaled) and `sum` are brought up to date and `out` [out_size padded] is rescaled to
  // the new maximum. A row that has seen nothing yet has maximum -inf and sum 0.
  // REQUIRES: scale >= 0, visible <= n.
  void (*softmax_step)(float* logits, int64_t n, int64_t visible, float scale, float* maximum,
                       float* sum, float* out, int64_t out_size);
  // The same without weights: only `maximum` and `sum`.
  void (*normaliser_step)(const float* logits, int64_t n, int64_t visible, float scale,
                          float* maximum, float* sum);
  // best[j] = max(best[j], scale * logits[row, j] - lse[row]) over all rows; NaN wins and stays.
  void (*column_max)(const float* logits, int64_t stride, int64_t rows, int64_t n, float scale,
                     const float* lse, float* best);
  // y = gate * sigmoid(gate) * up
  void (*silu_mul)(const float* gate, const float* up, int64_t count, float* y);
  // y = gelu(gate) * up, by the tanh approximation
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t count, float* y);
  // y = x / sqrt(mean(x^2) + epsilon) * weight
  void (*rms_norm)(const float* x, const float* weight, int64_t count, float epsilon, float* y);
  // Rounds to the nearest bf16, ties to even; NaN stays NaN.
  void (*to_bf16)(const float* from, int64_t count, uint16_t* to);
  // y = exp(x), within 2 units in the last place above -87, 0 below. For tests.
  void (*exp)(const float* x, int64_t count, float* y);
};

// Null where the machine, or the compiler's target, does not have the instructions.
const CpuKernels* Avx512Bf16Kernels();  // Differs from Avx512Kernels in products and softmax.
const CpuKernels* Avx512Kernels();
const CpuKernels* Avx2Kernels();
const CpuKernels* BaselineKernels();
// The fastest of those with fp32 factors.
const CpuKernels& BestCpuKernels();

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_KERNELS_H_
