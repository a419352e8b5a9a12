// Which of the runtime's errors say that there is no device to use: programs start without one on
// these, and stop at others.
#include "cuda/cuda_error.h"

#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(CudaErrorTest, NoUsableDeviceIsUnavailable) {
  for (const cudaError_t error :
       {cudaErrorInsufficientDriver, cudaErrorStubLibrary, cudaErrorCallRequiresNewerDriver,
        cudaErrorCompatNotSupportedOnDevice, cudaErrorSystemNotReady, cudaErrorSystemDriverMismatch,
        cudaErrorNoDevice, cudaErrorInvalidDevice, cudaErrorDevicesUnavailable}) {
    EXPECT_EQ(CodeOfCudaError(error), absl::StatusCode::kUnavailable) << error;
    EXPECT_EQ(CodeOfCudaProbeError(error), absl::StatusCode::kUnavailable) << error;
  }
}

TEST(CudaErrorTest, ADriverThatDoesNotStartIsUnavailableOnlyWhileLooking) {
  for (const cudaError_t error : {cudaErrorInitializationError, cudaErrorOperatingSystem}) {
    EXPECT_EQ(CodeOfCudaProbeError(error), absl::StatusCode::kUnavailable) << error;
    EXPECT_EQ(CodeOfCudaError(error), absl::StatusCode::kInternal) << error;
  }
}

TEST(CudaErrorTest, MemoryIsExhaustedAndTheRestInternal) {
  EXPECT_EQ(CodeOfCudaError(cudaErrorMemoryAllocation), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CodeOfCudaProbeError(cudaErrorMemoryAllocation), absl::StatusCode::kResourceExhausted);
  for (const cudaError_t error :
       {cudaErrorIllegalAddress, cudaErrorInvalidConfiguration, cudaErrorECCUncorrectable}) {
    EXPECT_EQ(CodeOfCudaError(error), absl::StatusCode::kInternal) << error;
    EXPECT_EQ(CodeOfCudaProbeError(error), absl::StatusCode::kInternal) << error;
  }
}

}  // namespace
}  // namespace kvtier
