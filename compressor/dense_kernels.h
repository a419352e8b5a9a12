// The inner loops of DenseReferenceDecoder, compiled for two instruction sets (dense_kernels_*.cc)
// from one text (dense_kernels.inc). Plain loops that a compiler vectorises; nothing shared with
// CpuKernels.
#ifndef KVTIER_COMPRESSOR_DENSE_KERNELS_H_
#define KVTIER_COMPRESSOR_DENSE_KERNELS_H_

#include <stdint.h>

namespace kvtier {

struct DenseKernels {
  // y[rows, out] = x[rows, in] w[out, in]^T
  void (*linear)(const float* x, const float* w, int64_t rows, int64_t in, int64_t out, float* y);
  // For each r: out[r] = softmax(scale * q[r] keys^T) values over the first first_seen + r keys.
  // q and out have row stride `stride`; logits is scratch of
  // 4 * (first_seen + rows) floats.
  void (*attend)(const float* q, const float* keys, const float* values, int64_t rows,
                 int64_t stride, int64_t first_seen, int64_t dim, float scale, float* logits,
                 float* out);
};

const DenseKernels& ChooseDenseKernels();

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DENSE_KERNELS_H_
