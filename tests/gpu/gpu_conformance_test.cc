// The suites that every backend passes, on the device.
#include <memory>

#include "base/status_matchers.h"
#include "cuda/cuda_backend.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/bf16_conformance.h"
#include "tests/conformance/decode_step_conformance.h"
#include "tests/conformance/decoder_conformance.h"
#include "tests/gpu/gpu_check.h"

namespace kvtier {
namespace {

// A backend that does not start is a failure here, never a skipped test: the device was there.
std::unique_ptr<Backend> MakeBackend(DType activations) {
  auto backend = MakeCudaBackend(DeviceUnderTest(), activations);
  KVTIER_EXPECT_OK(backend);
  if (!backend.ok()) return nullptr;
  // Without one everything would be ranked and packed on the host, and pass.
  EXPECT_NE((*backend)->packer(), nullptr);
  return *std::move(backend);
}

INSTANTIATE_TEST_SUITE_P(Cuda, BackendConformanceTest,
                         ::testing::Values(BackendCase{"fp32",
                                                       [] { return MakeBackend(DType::kF32); }}),
                         BackendCaseName);
INSTANTIATE_TEST_SUITE_P(Cuda, Bf16ConformanceTest,
                         ::testing::Values(BackendCase{"bf16",
                                                       [] { return MakeBackend(DType::kBf16); }}),
                         BackendCaseName);

TEST(CudaDecoderTest, AnswersTokenForTokenAsTheCpu) {
  ExpectDecodesAsTheCpu(MakeBackend(DType::kF32));
}

TEST(CudaDecodeStepTest, ReplayedStepsAreLaunchedSteps) {
  ExpectReplayedStepsAreLaunchedSteps(MakeBackend);
}

TEST(CudaDecodeStepTest, TwoDecodersOfOneObjectAtOnce) {
  ExpectTwoDecodersOfOneObject(MakeBackend(DType::kF32));
}

}  // namespace
}  // namespace kvtier
