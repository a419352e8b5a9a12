// Kernels for AVX2 and FMA.
#ifdef __AVX2__  // Flags: compressor/CMakeLists.txt; other architectures go without.

#define KV_KERNELS kAvx2Kernels
#define KV_NAME "avx2"
#define KV_LANES 8
#define KV_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define KV_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define KV_TILE_ROWS 6
#define KV_TILE_VECTORS 2
#include "compressor/cpu_kernels.inc"

#endif  // __AVX2__
