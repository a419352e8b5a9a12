// Kernels for AVX-512 (F, BW, DQ, VL).
#ifdef __AVX512F__  // Flags: compressor/CMakeLists.txt; other architectures go without.

#define KV_KERNELS kAvx512Kernels
#define KV_NAME "avx512"
#define KV_LANES 16
#define KV_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define KV_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define KV_TILE_ROWS 6
#define KV_TILE_VECTORS 4
#include "compressor/cpu_kernels.inc"

#endif  // __AVX512F__
