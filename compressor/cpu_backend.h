// The fast CPU path: linear layers through oneDNN with weights packed once, attention and scoring
// blocked over rows and keys with vector code chosen for the machine at run time, all spread over a
// small pool of threads that the backend owns.
//
// Activations and sums are fp32. On machines with AVX512-BF16 (CpuCompute) products take both
// factors in bf16 where one of them is stored so: linear layers where the checkpoint's weights are
// bf16, attention and scoring where the cache is (decoding excepted, which is bound by reading).
// Elsewhere products are fp32, and 16-bit weights and rows are expanded exactly. A row's result
// does not depend on how many threads there are.
#ifndef KVTIER_COMPRESSOR_CPU_BACKEND_H_
#define KVTIER_COMPRESSOR_CPU_BACKEND_H_

#include <memory>
#include <string>

#include "compressor/backend.h"

namespace kvtier {

// The factors of products; sums are fp32 always.
enum class CpuCompute {
  kAuto,  // bf16 where weights or cache are and the machine has the instructions, else fp32.
  kF32,   // fp32 everywhere: for comparisons with fp32 results.
  kBf16,  // As kAuto; no backend where the machine has no bf16 products.
};

struct CpuBackendOptions {
  // Threads that work on one operation, its caller included. 0: all cores.
  int threads = 0;
  // Instructions to use: "avx512", "avx2", "baseline"; empty: the best that the machine has.
  std::string kernels = "";
  CpuCompute compute = CpuCompute::kAuto;
};

// Thread-safe: callers share the pool, and each works on its own operation meanwhile, so that none
// waits for another's. Null when `options` asks for instructions that the machine lacks.
std::unique_ptr<Backend> MakeCpuBackend(CpuBackendOptions options = {});

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_BACKEND_H_
