// The reference decoder's loops for what every machine has.

#define DENSE_KERNELS kBaselineDenseKernels
#include "compressor/dense_kernels.inc"
