// Kernels for what every machine has.

#define KV_KERNELS kBaselineKernels
#define KV_NAME "baseline"
#define KV_LANES 4
#define KV_LOW 0, 4, 1, 5
#define KV_HIGH 2, 6, 3, 7
#define KV_TILE_ROWS 2
#define KV_TILE_VECTORS 4
#include "compressor/cpu_kernels.inc"
