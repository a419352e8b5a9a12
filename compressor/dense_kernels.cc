#include "compressor/dense_kernels.h"

namespace kvtier {

extern const DenseKernels kBaselineDenseKernels;
#ifdef KVTIER_X86_KERNELS
extern const DenseKernels kAvx2DenseKernels;
#endif

const DenseKernels& ChooseDenseKernels() {
#ifdef KVTIER_X86_KERNELS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2DenseKernels;
#endif
  return kBaselineDenseKernels;
}

}  // namespace kvtier
