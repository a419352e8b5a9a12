#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "base/status_matchers.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/bf16_conformance.h"

namespace kvtier {
namespace {

std::unique_ptr<Backend> MakeEmulatedBackend(DType activations) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  auto backend = MakeDeviceBackend(device, MakePlainGemm(device), activations);
  KVTIER_EXPECT_OK(backend);
  return backend.ok() ? *std::move(backend) : nullptr;
}

INSTANTIATE_TEST_SUITE_P(Emulated, BackendConformanceTest,
                         ::testing::Values(BackendCase{
                             "fp32", [] { return MakeEmulatedBackend(DType::kF32); }}),
                         BackendCaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, Bf16ConformanceTest,
                         ::testing::Values(BackendCase{
                             "bf16", [] { return MakeEmulatedBackend(DType::kBf16); }}),
                         BackendCaseName);

TEST(DeviceBackendTest, RefusesHalfPrecisionActivations) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  EXPECT_THAT(MakeDeviceBackend(device, MakePlainGemm(device), DType::kF16),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DeviceBackendTest, SaysWhenMemoryIsShort) {
  std::shared_ptr<Device> device = MakeEmulatedDevice(/*bytes_max=*/1 << 20);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
  EXPECT_THAT(backend->Allocate(DType::kF32, 1024, 1024),
              StatusIs(absl::StatusCode::kResourceExhausted));
  // What was given back is there again, also after the backend.
  for (int i = 0; i < 3; ++i) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor tensor, backend->Allocate(DType::kF32, 1024, 200));
  }
}

TEST(DeviceBackendTest, TensorsOutliveTheirBackend) {
  Tensor tensor;
  {
    std::shared_ptr<Device> device = MakeEmulatedDevice();
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                                MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
    KVTIER_ASSERT_OK_AND_ASSIGN(tensor, backend->Allocate(DType::kF32, 2, 2));
  }
  static_cast<float*>(tensor.data())[3] = 1;
}

// No promise of Backend's: without it a fault of one row would spread to all queries before it.
TEST(DeviceBackendTest, AnInfiniteValueReachesOnlyTheQueriesThatSeeItsRow) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
  const int64_t dim = 64;
  const int64_t rows = 5;
  const Tensor q = MakeActivations(*backend, Floats(rows * dim, 0.5f), rows, dim);
  const Tensor out = MakeActivations(*backend, Floats(rows * dim), rows, dim);
  Floats values(rows * dim, 1);
  for (int64_t d = 0; d < dim; ++d) values[3 * dim + d] = std::numeric_limits<float>::infinity();
  const Layer tail =
      MakeLayer(*backend, Floats(rows * dim, 0.25f), values, DType::kF32, 1, rows, dim);
  const HeadSpans none(1);
  KVTIER_ASSERT_OK(backend->Attention({.q = q,
                                       .spans = &none,
                                       .span_dtype = DType::kF32,
                                       .tail = tail.view,
                                       .tail_rows = rows,
                                       .scale = 1,
                                       .out = out}));
  const Floats results = Read(*backend, out);
  for (int64_t i = 0; i < rows * dim; ++i) {
    if (i / dim < 3) {
      ASSERT_NEAR(results[i], 1, 1e-6) << "row " << i / dim;
    } else {
      ASSERT_FALSE(std::isfinite(results[i])) << "row " << i / dim;
    }
  }
}

TEST(EmulatedDeviceTest, NoticesWritesBehindAnAllocation) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory memory, DeviceMemory::Allocate(device, 10));
  KVTIER_EXPECT_OK(device->Check(0, "test"));
  memory.as<char>()[10] = 1;
  EXPECT_THAT(device->Check(0, "test"), StatusIs(absl::StatusCode::kInternal));
}

TEST(EmulatedDeviceTest, AFailedLaunchIsInternalAndNamesItself) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  EXPECT_THAT(device->Check(kInvalidConfiguration, "gather"),
              StatusIs(absl::StatusCode::kInternal, ::testing::HasSubstr("gather")));
}

}  // namespace
}  // namespace kvtier
