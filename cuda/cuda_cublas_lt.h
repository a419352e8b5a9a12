// cuBLASLt's functions, found when a GPU is first used. Programs are not linked with it: it brings
// half a gigabyte and 92 KiB of static thread-local storage, which every thread of a process that
// starts with it pays out of its stack. The 64 KiB stacks of the metrics server's threads do not
// hold that.
#ifndef KVTIER_CUDA_CUDA_CUBLAS_LT_H_
#define KVTIER_CUDA_CUDA_CUBLAS_LT_H_

#include <cublasLt.h>

#include "absl/status/statusor.h"

namespace kvtier {

// Each member is the function of its name in cuBLASLt's documentation, without the prefix.
struct CublasLt {
  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtGetStatusName) GetStatusName;
  decltype(&cublasLtGetVersion) GetVersion;
  decltype(&cublasLtMatmul) Matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
};

// The one of this process; it stays loaded to the end. UNAVAILABLE: the library, or one of its
// functions, is not there; the message says which. Thread-safe.
absl::StatusOr<const CublasLt*> LoadCublasLt();

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_CUBLAS_LT_H_
