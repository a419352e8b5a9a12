// The reference decoder's loops for AVX2 and FMA.
#ifdef __AVX2__  // Flags: compressor/CMakeLists.txt; other architectures go without.

#define DENSE_KERNELS kAvx2DenseKernels
#include "compressor/dense_kernels.inc"

#endif  // __AVX2__
