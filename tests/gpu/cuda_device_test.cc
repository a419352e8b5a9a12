// The device itself: memory in stream order, errors that name what failed, products by the library
// against the plain kernel.
#include "cuda/cuda_device.h"

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "cuda/cuda_download_ring.h"
#include "cuda/cuda_gemm.h"
#include "cuda/cuda_upload_ring.h"
#include "cuda/elementwise.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu/gpu_check.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KVTIER_ASSERT_OK_AND_ASSIGN(device_, MakeCudaDevice(DeviceUnderTest()));
    KVTIER_ASSERT_OK(device_->Enter());
  }
  std::shared_ptr<Device> device_;
};

TEST_F(CudaDeviceTest, MemoryIsUsedAgainInStreamOrder) {
  std::vector<uint32_t> numbers(1 << 20);
  for (uint32_t round = 0; round < 50; ++round) {
    std::fill(numbers.begin(), numbers.end(), round);
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory memory,
                                DeviceMemory::Of(device_, std::span<const uint32_t>(numbers)));
    std::fill(numbers.begin(), numbers.end(), 1234567);  // Taken over when the call returned.
    KVTIER_ASSERT_OK(
        device_->CopyOut(memory.as<void>(), numbers.data(), numbers.size() * sizeof(uint32_t)));
    ASSERT_THAT(numbers, ::testing::Each(round));
  }
}

// More copies than the ring of uploads has slots, of sizes around a slot's, all from memory that
// changes at once; nothing waits for the device between them.
TEST_F(CudaDeviceTest, UploadsKeepWhatTheHostOverwrites) {
  std::vector<uint64_t> sizes = {(3 * CudaUploadRing::kSlotBytes) + 1, CudaUploadRing::kSlotBytes,
                                 CudaUploadRing::kSlotBytes - 1, 1};
  sizes.resize(3 * CudaUploadRing::kSlots, 1000);
  std::vector<unsigned char> host(sizes[0]);
  std::vector<DeviceMemory> copies;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::fill_n(host.begin(), sizes[i], static_cast<unsigned char>(i + 1));
    KVTIER_ASSERT_OK_AND_ASSIGN(
        DeviceMemory copy, DeviceMemory::Of(device_, std::span<const unsigned char>(host).first(
                                                         static_cast<size_t>(sizes[i]))));
    copies.push_back(std::move(copy));
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::vector<unsigned char> back(sizes[i]);
    KVTIER_ASSERT_OK(device_->CopyOut(copies[i].as<void>(), back.data(), sizes[i]));
    ASSERT_THAT(back, ::testing::Each(static_cast<unsigned char>(i + 1))) << "copy " << i;
  }
}

// Copies that are begun side by side, of sizes around a slot's and larger than the ring, while the
// memory that they do not read is written; some are given up.
TEST_F(CudaDeviceTest, CopiesBesideTheStreamBringWhatWasWrittenBeforeThem) {
  constexpr uint64_t kSlot = CudaDownloadRing::kSlotBytes;
  const std::vector<uint64_t> sizes = {
      1, kSlot - 1, kSlot, kSlot + 1, 0, (CudaDownloadRing::kSlots + 3) * kSlot + 5};
  for (int round = 0; round < 3; ++round) {
    std::vector<DeviceMemory> memory;
    std::vector<std::vector<unsigned char>> host;
    std::vector<std::unique_ptr<PendingCopy>> copies;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const std::vector<unsigned char> bytes(sizes[i],
                                             static_cast<unsigned char>(round * 16 + i + 1));
      KVTIER_ASSERT_OK_AND_ASSIGN(DeviceMemory made,
                                  DeviceMemory::Of(device_, std::span<const unsigned char>(bytes)));
      memory.push_back(std::move(made));
      host.emplace_back(sizes[i]);
      KVTIER_ASSERT_OK_AND_ASSIGN(
          auto copy, device_->BeginCopyOut(memory[i].as<void>(), host[i].data(), sizes[i]));
      copies.push_back(std::move(copy));
      // Given up at once; the slots come back.
      KVTIER_ASSERT_OK(
          device_->BeginCopyOut(memory[i].as<void>(), host[i].data(), sizes[i]).status());
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
      KVTIER_ASSERT_OK(copies[i]->Wait());
      ASSERT_THAT(host[i], ::testing::Each(static_cast<unsigned char>(round * 16 + i + 1)))
          << sizes[i] << " bytes";
    }
  }
}

TEST_F(CudaDeviceTest, MoreMemoryThanThereIsIsExhaustedAndNoMore) {
  EXPECT_THAT(device_->Allocate(uint64_t{1} << 50),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       ::testing::HasSubstr("1125899906842624 bytes")));
  KVTIER_EXPECT_OK(DeviceMemory::Allocate(device_, 1 << 20));
  KVTIER_EXPECT_OK(device_->Synchronize());
}

TEST_F(CudaDeviceTest, CountsTheMemoryInUseAndItsPeak) {
  constexpr uint64_t kBytes = 64 << 20;  // The driver rounds up small ones.
  KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemoryUse before, device_->MemoryUse());
  KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory kept, DeviceMemory::Allocate(device_, kBytes));
  { KVTIER_ASSERT_OK(DeviceMemory::Allocate(device_, kBytes)); }
  KVTIER_ASSERT_OK(device_->Synchronize());
  KVTIER_ASSERT_OK_AND_ASSIGN(DeviceMemoryUse use, device_->MemoryUse());
  EXPECT_GE(use.bytes, before.bytes + kBytes);
  EXPECT_LT(use.bytes, before.bytes + 2 * kBytes);
  EXPECT_GE(use.peak_bytes, before.bytes + 2 * kBytes);
  KVTIER_ASSERT_OK(device_->ResetMemoryPeak());
  KVTIER_ASSERT_OK_AND_ASSIGN(use, device_->MemoryUse());
  EXPECT_EQ(use.peak_bytes, use.bytes);
}

TEST_F(CudaDeviceTest, ALaunchThatCannotBeIsAnError) {
  // More blocks than a grid may have.
  const DeviceError error = LaunchRmsNorm({.rows = int64_t{1} << 40, .cols = 1}, device_->stream());
  EXPECT_THAT(device_->Check(error, "rms norm"),
              StatusIs(absl::StatusCode::kInternal, ::testing::HasSubstr("rms norm")));
  KVTIER_EXPECT_OK(device_->Synchronize());
}

TEST_F(CudaDeviceTest, TheLibrarysProductsEqualThePlainKernels) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto library, MakeCudaGemm(device_));
  const auto plain = MakePlainGemm(device_);
  std::mt19937_64 random(TestSeed());
  std::uniform_real_distribution<float> uniform(-1, 1);
  const int64_t shapes[][3] = {{1, 4096, 4096}, {17, 6144, 4096}, {256, 256, 14336}, {5, 7, 3}};
  for (const auto& [rows, out, in] : shapes) {
    SCOPED_TRACE(absl::StrCat("[", rows, ", ", in, "] x [", out, "]"));
    std::vector<bfloat16> x(rows * in);
    std::vector<bfloat16> w(out * in);
    for (bfloat16& value : x) value = bfloat16(uniform(random));
    for (bfloat16& value : w) value = bfloat16(uniform(random));
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory x_memory,
                                DeviceMemory::Of(device_, std::span<const bfloat16>(x)));
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory w_memory,
                                DeviceMemory::Of(device_, std::span<const bfloat16>(w)));
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory y_memory,
                                DeviceMemory::Allocate(device_, rows * out * sizeof(bfloat16)));
    const GemmParams params{.x = x_memory.as<void>(),
                            .weights = w_memory.as<void>(),
                            .y = y_memory.as<void>(),
                            .x_type = Element::kBf16,
                            .weights_type = Element::kBf16,
                            .y_type = Element::kBf16,
                            .rows = rows,
                            .out = out,
                            .in = in};
    std::vector<std::vector<bfloat16>> results;
    for (Gemm* gemm : {library.get(), plain.get(), library.get()}) {
      KVTIER_ASSERT_OK(gemm->Run(params));
      results.emplace_back(rows * out);
      KVTIER_ASSERT_OK(device_->CopyOut(y_memory.as<void>(), results.back().data(),
                                        rows * out * sizeof(bfloat16)));
    }
    for (int64_t i = 0; i < rows * out; ++i) {
      const auto expected = static_cast<float>(results[1][i]);
      // Both round to bf16 once, from sums that differ in order: at worst a unit in the last place.
      ASSERT_NEAR(static_cast<float>(results[0][i]), expected, 1e-3 + std::abs(expected) * 0x1p-7);
      ASSERT_EQ(results[0][i].bits, results[2][i].bits) << "a second run differs";
    }
  }
}

}  // namespace
}  // namespace kvtier
