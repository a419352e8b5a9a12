#include "services/compute_device.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <prometheus/text_serializer.h>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/machine_devices.h"
#include "services/machine_links.h"
#include "services/metrics.h"
#include "services/model_flags.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

ABSL_DECLARE_FLAG(std::string, device);
ABSL_DECLARE_FLAG(std::vector<std::string>, model);

namespace kvtier {
namespace {

using ::absl::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// A build with CUDA on a machine with `gpus` GPUs; `says` is what asking for another one gets.
DeviceBackends FakeBackends(int gpus, absl::Status says) {
  DeviceBackends backends;
  backends.cpu = []() -> absl::StatusOr<std::unique_ptr<Backend>> {
    return MakeReferenceBackend();
  };
  backends.cuda = [=](int ordinal) -> absl::StatusOr<std::unique_ptr<Backend>> {
    if (ordinal >= gpus) return says;
    return std::make_unique<FakeDeviceBackend>(absl::StrCat("cuda:", ordinal));
  };
  return backends;
}

TEST(DeviceChoiceTest, ReadsWhatTheFlagMaySay) {
  for (const char* text : {"cpu", "auto", "cuda:0", "cuda:7", "cuda:1023"}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceChoice choice, DeviceChoice::Parse(text));
    EXPECT_EQ(choice.ToString(), text);
  }
  for (const char* text : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:1x",
                           "cuda:1024", "cuda:99999999999", "CPU", "cuda:0,1"}) {
    EXPECT_THAT(DeviceChoice::Parse(text), StatusIs(StatusCode::kInvalidArgument,
                                                    AllOf(HasSubstr(text), HasSubstr("cuda:N"))));
  }
}

TEST(OpenComputeDeviceTest, TakesTheGpuThatWasAskedFor) {
  const DeviceBackends backends = FakeBackends(2, absl::InternalError("not asked for"));
  const std::pair<const char*, const char*> cases[] = {
      {"auto", "cuda:0"}, {"cuda:0", "cuda:0"}, {"cuda:1", "cuda:1"}, {"cpu", "reference"}};
  for (const auto& [asked, got] : cases) {
    SCOPED_TRACE(asked);
    KVTIER_ASSERT_OK_AND_ASSIGN(const ComputeDevice device,
                                OpenComputeDevice(*DeviceChoice::Parse(asked), backends));
    EXPECT_EQ(device.backend->name(), got);
    EXPECT_THAT(device.fallback_reason, IsEmpty());
  }
}

TEST(OpenComputeDeviceTest, AMachineWithoutAGpuComputesOnTheCpuAndSaysWhy) {
  for (const absl::Status& says :
       {absl::UnavailableError("no CUDA device: the driver is too old"),
        absl::FailedPreconditionError("no CUDA device: the driver is too old"),
        absl::NotFoundError("no CUDA device: the driver is too old")}) {
    for (const char* asked : {"auto", "cuda:0", "cuda:3"}) {
      SCOPED_TRACE(testing::Message() << asked << " " << says);
      KVTIER_ASSERT_OK_AND_ASSIGN(
          const ComputeDevice device,
          OpenComputeDevice(*DeviceChoice::Parse(asked), FakeBackends(0, says)));
      EXPECT_EQ(device.backend->name(), "reference");
      EXPECT_EQ(device.fallback_reason, "no CUDA device: the driver is too old");
    }
  }
}

TEST(OpenComputeDeviceTest, AGpuThatCannotBeUsedIsAnErrorUnlessAnythingWillDo) {
  const DeviceBackends backends = FakeBackends(1, absl::OutOfRangeError("there is 1 GPU"));
  EXPECT_THAT(OpenComputeDevice(*DeviceChoice::Parse("cuda:1"), backends),
              StatusIs(StatusCode::kOutOfRange, AllOf(HasSubstr("cuda:1"), HasSubstr("1 GPU"))));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ComputeDevice device,
      OpenComputeDevice(*DeviceChoice::Parse("auto"),
                        FakeBackends(0, absl::ResourceExhaustedError("its memory is taken"))));
  EXPECT_EQ(device.backend->name(), "reference");
  EXPECT_EQ(device.fallback_reason, "its memory is taken");
}

TEST(OpenComputeDeviceTest, ABuildWithoutCudaRefusesAGpuByName) {
  DeviceBackends backends = FakeBackends(0, absl::OkStatus());
  backends.cuda = nullptr;
  EXPECT_THAT(
      OpenComputeDevice(*DeviceChoice::Parse("cuda:2"), backends),
      StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("cuda:2"), HasSubstr("build"))));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ComputeDevice device,
                              OpenComputeDevice(*DeviceChoice::Parse("auto"), backends));
  EXPECT_EQ(device.backend->name(), "reference");
  EXPECT_THAT(device.fallback_reason, HasSubstr("build"));
}

TEST(OpenComputeDeviceTest, TheCpuOfThisMachineIsAlwaysThere) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ComputeDevice device,
      OpenComputeDevice(*DeviceChoice::Parse("cpu"), CpuDevices(/*threads=*/1)));
  EXPECT_EQ(device.backend->name(), "cpu");
  EXPECT_THAT(OpenComputeDevice(*DeviceChoice::Parse("cpu"), CpuDevices(-1)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--threads")));
}

TEST(MachineCommunicatorsTest, ALinkIsBetweenGpus) {
  const auto backend = MakeReferenceBackend();
  const absl::Status refused = MachineCommunicators(*backend).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused) || absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("reference"));
}

TEST(MachineDevicesTest, AGpuIsUsedRefusedByNameOrReplacedByTheCpu) {
  // Which of the three, the build and the machine decide.
  const absl::StatusOr<ComputeDevice> device =
      OpenComputeDevice(*DeviceChoice::Parse("cuda:0"), MachineDevices(/*threads=*/1));
  if (!device.ok()) {
    EXPECT_THAT(device.status(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("cuda:0")));
  } else if (device->backend->name() == "cpu") {
    EXPECT_THAT(device->fallback_reason, Not(IsEmpty()));
  } else {
    EXPECT_EQ(device->backend->name(), "cuda:0");
  }
}

class LoadModelsTest : public testing::Test {
 protected:
  LoadModelsTest() {
    KVTIER_EXPECT_OK(WriteTinyModel({}, dir_.File("tiny")));
    absl::SetFlag(&FLAGS_model, {dir_.File("tiny")});
  }
  // What the metrics page would show.
  std::string Exported() {
    return prometheus::TextSerializer().Serialize(metrics_.registry().Collect());
  }

  const absl::FlagSaver flags_;
  TempDir dir_;
  Metrics metrics_;
};

TEST_F(LoadModelsTest, TheModelLiesOnTheDeviceThatWasAskedFor) {
  absl::SetFlag(&FLAGS_device, "cuda:1");
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const LoadedModels loaded,
      LoadModelsFromFlags(FakeBackends(2, absl::InternalError("not asked for")), metrics_));
  ASSERT_EQ(loaded.models.size(), 1u);
  EXPECT_EQ(loaded.backend->name(), "cuda:1");
  EXPECT_EQ(&loaded.models.front()->backend(), loaded.backend.get());
  const auto& device = static_cast<const FakeDeviceBackend&>(*loaded.backend);
  EXPECT_GT(device.uploaded_bytes(), 0u) << "the weights went there";
  EXPECT_THAT(Exported(), HasSubstr("kvtier_compute_device{asked=\"cuda:1\",device=\"cuda:1\"} 1"));
}

TEST_F(LoadModelsTest, AFallBackShowsInTheLogAndInAMetric) {
  absl::SetFlag(&FLAGS_device, "cuda:0");
  testing::internal::CaptureStderr();
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const LoadedModels loaded,
      LoadModelsFromFlags(FakeBackends(0, absl::UnavailableError("no CUDA device")), metrics_));
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(loaded.backend->name(), "reference");
  EXPECT_THAT(log, AllOf(HasSubstr("cuda:0"), HasSubstr("reference"), HasSubstr("no CUDA device")));
  EXPECT_THAT(Exported(),
              HasSubstr("kvtier_compute_device{asked=\"cuda:0\",device=\"reference\"} 1"));
}

}  // namespace
}  // namespace kvtier
