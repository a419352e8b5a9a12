#include "tests/conformance/backend_conformance.h"

#include "compressor/cpu_backend.h"
#include "compressor/reference_backend.h"

namespace kvtier {
namespace {

BackendCase Cpu(const std::string& name, const std::string& kernels, int threads,
                CpuCompute compute = CpuCompute::kF32) {
  return {.name = name,
          .make =
              [kernels, threads, compute] {
                return MakeCpuBackend({.threads = threads, .kernels = kernels, .compute = compute});
              },
          .bf16_products = compute == CpuCompute::kBf16};
}

INSTANTIATE_TEST_SUITE_P(
    Backends, BackendConformanceTest,
    ::testing::Values(BackendCase{.name = "reference",
                                  .make = [] { return MakeReferenceBackend(); }},
                      Cpu("cpu", "", 3), Cpu("cpu_one_thread", "", 1),
                      Cpu("cpu_avx512", "avx512", 2), Cpu("cpu_avx2", "avx2", 2),
                      Cpu("cpu_baseline", "baseline", 2),
                      Cpu("cpu_bf16", "", 3, CpuCompute::kBf16)),
    BackendCaseName);

}  // namespace
}  // namespace kvtier
