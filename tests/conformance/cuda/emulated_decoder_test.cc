#include <memory>

#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "gtest/gtest.h"
#include "tests/conformance/decoder_conformance.h"

namespace kvtier {
namespace {

TEST(EmulatedDecoderTest, AnswersTokenForTokenAsTheCpu) {
  const std::shared_ptr<Device> device = MakeEmulatedDevice();
  ExpectDecodesAsTheCpu(*MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
}

}  // namespace
}  // namespace kvtier
