// The fast CPU path: linear layers through oneDNN with weights packed once, attention and scoring
// blocked over rows and keys with vector code chosen for the machine at run time, all spread over a
// small pool of threads that the backend owns.
//
// Activations and sums are fp32; weights and KV rows of 16 bits are expanded exactly. A row's
// result does not depend on how many threads there are.
#ifndef KVTIER_COMPRESSOR_CPU_BACKEND_H_
#define KVTIER_COMPRESSOR_CPU_BACKEND_H_

#include <memory>
#include <string>

#include "compressor/backend.h"

namespace kvtier {

struct CpuBackendOptions {
  // Threads that work on one operation, its caller included. 0: all cores.
  int threads = 0;
  // Instructions to use: "avx512", "avx2", "baseline"; empty: the best that the machine has.
  std::string kernels = "";
};

// Thread-safe: callers share the pool, and each works on its own operation meanwhile, so that none
// waits for another's. Null when `options.kernels` names instructions that the machine lacks.
std::unique_ptr<Backend> MakeCpuBackend(CpuBackendOptions options = {});

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_BACKEND_H_
