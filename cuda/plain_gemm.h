// y = x W^T on any device and for any mix of element types, without a library: what the emulator
// runs, the fallback for shapes that cuBLASLt does not take, and the twin it is compared with.
//
// Layout: x [rows, in], W [out, in], y [rows, out], row-major. Sums in fp32, 32 products at a time,
// in a fixed order. Launch: a block of 256 threads per 16 x 16 outputs, or several of them where
// there are more than 65536 rows.
#ifndef KVTIER_CUDA_PLAIN_GEMM_H_
#define KVTIER_CUDA_PLAIN_GEMM_H_

#include <cstdint>

#include "cuda/math/element.h"
#include "cuda/simt.h"

namespace kvtier {

struct GemmParams {
  const void* x = nullptr;
  const void* weights = nullptr;
  void* y = nullptr;
  Element x_type = Element::kF32;
  Element weights_type = Element::kF32;
  Element y_type = Element::kF32;
  int64_t rows = 0;
  int64_t out = 0;
  int64_t in = 0;
  // Device memory for parts of sums, nobody else's until the stream has done the product, where a
  // library wants some (cuda/gemm.h); the kernel needs none.
  void* workspace = nullptr;
  uint64_t workspace_bytes = 0;
};
DeviceError LaunchPlainGemm(const GemmParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_PLAIN_GEMM_H_
