// NCCL's real calls with a group of one rank, which is all that one GPU allows: what it sends to
// itself arrives, and an abort ends it. Exits with 77 (skipped) where there is no GPU.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "cuda/nccl/nccl_communicator.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::absl::StatusCode;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

// Device memory that frees itself.
class DeviceBytes {
 public:
  explicit DeviceBytes(const std::vector<uint8_t>& bytes) : bytes_(bytes.size()) {
    EXPECT_EQ(cudaMalloc(&data_, bytes_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, bytes.data(), bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  void* data() const { return data_; }
  std::vector<uint8_t> Read() const {
    std::vector<uint8_t> bytes(bytes_);
    EXPECT_EQ(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    return bytes;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

std::vector<uint8_t> Pattern(size_t bytes, uint32_t seed) {
  std::vector<uint8_t> pattern(bytes);
  for (size_t i = 0; i < bytes; ++i)
    pattern[i] = static_cast<uint8_t>((i * 2654435761u + seed) >> 9);
  return pattern;
}

class NcclLoopbackTest : public testing::Test {
 protected:
  NcclLoopbackTest() : factory_(*MakeNcclFactory(0)) {}
  std::unique_ptr<Communicator> Make() {
    auto id = factory_->MakeUniqueId();
    KVTIER_EXPECT_OK(id);
    auto made = factory_->Create({.unique_id = *id, .rank = 0, .size = 1}, Soon(), CancelToken());
    KVTIER_EXPECT_OK(made);
    return *std::move(made);
  }
  const std::unique_ptr<CommunicatorFactory> factory_;
};

TEST_F(NcclLoopbackTest, WhatIsSentArrives) {
  const auto communicator = Make();
  EXPECT_EQ(communicator->rank(), 0);
  EXPECT_EQ(communicator->size(), 1);
  // Odd sizes, several operations in a group, several groups under way.
  const std::vector<size_t> sizes = {1, 64, 4096, 1000003, 32 << 20};
  std::vector<std::unique_ptr<DeviceBytes>> from, to;
  for (uint32_t round = 0; round < 3; ++round) {
    KVTIER_ASSERT_OK(communicator->GroupStart());
    for (const size_t bytes : sizes) {
      from.push_back(std::make_unique<DeviceBytes>(Pattern(bytes, round)));
      to.push_back(std::make_unique<DeviceBytes>(std::vector<uint8_t>(bytes)));
      KVTIER_ASSERT_OK(communicator->Send(from.back()->data(), bytes, 0));
      KVTIER_ASSERT_OK(communicator->Receive(to.back()->data(), bytes, 0));
    }
    EXPECT_THAT(communicator->GroupEnd(Soon()), IsOkAndHolds(round + 1));
  }
  KVTIER_ASSERT_OK(communicator->Wait(2, Soon()));
  KVTIER_ASSERT_OK(communicator->Wait(3, Soon()));
  for (size_t i = 0; i < to.size(); ++i) {
    EXPECT_EQ(to[i]->Read(),
              Pattern(sizes[i % sizes.size()], static_cast<uint32_t>(i / sizes.size())));
  }
  KVTIER_EXPECT_OK(communicator->QueryError());
}

TEST_F(NcclLoopbackTest, ABroadcastOfOneLeavesTheBytesAsTheyAre) {
  const auto communicator = Make();
  const DeviceBytes buffer(Pattern(100000, 7));
  KVTIER_ASSERT_OK(communicator->GroupStart());
  KVTIER_ASSERT_OK(communicator->Broadcast(buffer.data(), 100000, 0));
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t group, communicator->GroupEnd(Soon()));
  KVTIER_ASSERT_OK(communicator->Wait(group, Soon()));
  EXPECT_EQ(buffer.Read(), Pattern(100000, 7));
}

TEST_F(NcclLoopbackTest, AfterAnAbortEverythingFailsAndAnotherGroupWorks) {
  const auto communicator = Make();
  communicator->Abort();
  EXPECT_THAT(communicator->Wait(0, Soon()), StatusIs(StatusCode::kCancelled));
  EXPECT_FALSE(communicator->GroupStart().ok());
  EXPECT_FALSE(communicator->QueryError().ok());
  const auto other = Make();
  KVTIER_EXPECT_OK(other->QueryError());
}

TEST_F(NcclLoopbackTest, ARankThatDoesNotComeIsADeadline) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string id, factory_->MakeUniqueId());
  EXPECT_THAT(factory_->Create({.unique_id = id, .rank = 0, .size = 2},
                               absl::Now() + absl::Milliseconds(500), CancelToken()),
              StatusIs(StatusCode::kDeadlineExceeded));
  CancelToken cancelled;
  cancelled.Cancel();
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string other_id, factory_->MakeUniqueId());
  EXPECT_THAT(factory_->Create({.unique_id = other_id, .rank = 0, .size = 2}, Soon(), cancelled),
              StatusIs(StatusCode::kCancelled));
}

TEST_F(NcclLoopbackTest, WhatCannotBeIsRefused) {
  EXPECT_THAT(factory_->Create({.unique_id = "x", .rank = 0, .size = 1}, Soon(), CancelToken()),
              StatusIs(StatusCode::kInvalidArgument));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string id, factory_->MakeUniqueId());
  EXPECT_THAT(factory_->Create({.unique_id = id, .rank = 1, .size = 1}, Soon(), CancelToken()),
              StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(MakeNcclFactory(1000), StatusIs(StatusCode::kOutOfRange));
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const absl::Status there = kvtier::MakeNcclFactory(0).status();
  if (absl::IsUnavailable(there)) {
    std::printf("skipped: %s\n", absl::StrCat(there.message()).c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
