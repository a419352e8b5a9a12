#include "compressor/cpu_kernels.h"

namespace kvtier {

extern const CpuKernels kBaselineKernels;
#ifdef KVTIER_X86_KERNELS
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
void UseBf16Products(CpuKernels* kernels);
#endif

const CpuKernels* Avx512Kernels() {
#ifdef KVTIER_X86_KERNELS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return &kAvx512Kernels;
  }
#endif
  return nullptr;
}

const CpuKernels* Avx512Bf16Kernels() {
#ifdef KVTIER_X86_KERNELS
  if (Avx512Kernels() != nullptr && __builtin_cpu_supports("avx512bf16")) {
    static const CpuKernels kernels = [] {
      CpuKernels mixed = kAvx512Kernels;
      UseBf16Products(&mixed);
      return mixed;
    }();
    return &kernels;
  }
#endif
  return nullptr;
}

const CpuKernels* Avx2Kernels() {
#ifdef KVTIER_X86_KERNELS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2Kernels;
#endif
  return nullptr;
}

const CpuKernels* BaselineKernels() { return &kBaselineKernels; }

const CpuKernels& BestCpuKernels() {
  if (const CpuKernels* kernels = Avx512Kernels()) return *kernels;
  if (const CpuKernels* kernels = Avx2Kernels()) return *kernels;
  return kBaselineKernels;
}

}  // namespace kvtier
