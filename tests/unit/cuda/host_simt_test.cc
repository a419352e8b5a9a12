// The emulator itself: indices, barriers, shuffles, and that it notices what a device would not.
#include "cuda/emulated/host_simt.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/simt.h"
#include "cuda/vector.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

struct Params {
  int64_t* out = nullptr;
  int variant = 0;
};

KVTIER_KERNEL void IndexKernel(Params p) {
  const int64_t block = BlockX() + GridX() * (BlockY() + 3 * BlockZ());
  p.out[block * ThreadCount() + ThreadIndex()] += block * 1000 + ThreadIndex();
}

TEST(HostSimtTest, RunsEachThreadOfEachBlockOnce) {
  std::vector<int64_t> out(2 * 3 * 4 * 64, 0);
  ASSERT_EQ(LaunchKernel(IndexKernel, {.x = 2, .y = 3, .z = 4}, 64, 0, nullptr, {out.data()}), 0);
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], static_cast<int64_t>(i / 64 * 1000 + i % 64));
  }
}

// Each thread reads its neighbour's number, several times over.
KVTIER_KERNEL void NeighbourKernel(Params p) {
  auto* shared = static_cast<int64_t*>(SharedMemory());
  int64_t mine = ThreadIndex();
  for (int round = 0; round < 5; ++round) {
    shared[ThreadIndex()] = mine;
    BlockSync();
    mine = shared[(ThreadIndex() + 1) % ThreadCount()];
    if (p.variant == 0) BlockSync();  // Variant 1 lacks what keeps writers from slower readers.
  }
  p.out[ThreadIndex()] = mine;
}

TEST(HostSimtTest, BarriersOrderSharedMemory) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    std::vector<int64_t> out(96);
    ASSERT_EQ(LaunchKernel(NeighbourKernel, {}, 96, 96 * 8, nullptr, {out.data()}), 0);
    for (int64_t t = 0; t < 96; ++t) ASSERT_EQ(out[t], (t + 5) % 96);
  }
}

TEST(HostSimtTest, AMissingBarrierShows) {
  bool wrong = false;
  for (int attempt = 0; attempt < 20; ++attempt) {
    std::vector<int64_t> out(96);
    ASSERT_EQ(LaunchKernel(NeighbourKernel, {}, 96, 96 * 8, nullptr, {out.data(), 1}), 0);
    for (int64_t t = 0; t < 96; ++t) wrong = wrong || out[t] != (t + 5) % 96;
  }
  EXPECT_TRUE(wrong);
}

// A warp reads what another wrote, shuffles, and writes over its own: right only if all warps have
// read by then.
KVTIER_KERNEL void DriftKernel(Params p) {
  auto* shared = static_cast<int64_t*>(SharedMemory());
  shared[ThreadIndex()] = ThreadIndex();
  BlockSync();
  const int64_t theirs = shared[(ThreadIndex() + kWarpThreads) % ThreadCount()];
  ShuffleXor(theirs, 1);
  if (p.variant == 0) BlockSync();
  shared[ThreadIndex()] = -1;
  ShuffleXor(theirs, 1);
  p.out[ThreadIndex()] = theirs;
}

TEST(HostSimtTest, AWarpThatGetsAheadShows) {
  for (const int variant : {0, 1}) {
    bool wrong = false;
    for (int attempt = 0; attempt < 50; ++attempt) {
      std::vector<int64_t> out(96);
      ASSERT_EQ(LaunchKernel(DriftKernel, {}, 96, 96 * 8, nullptr, {out.data(), variant}), 0);
      for (int64_t t = 0; t < 96; ++t) wrong = wrong || out[t] != (t + 32) % 96;
    }
    EXPECT_EQ(wrong, variant == 1);
  }
}

KVTIER_KERNEL void ShuffleKernel(Params p) {
  int64_t sum = ThreadIndex();
  for (int mask = 16; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  p.out[ThreadIndex()] = sum;
}

TEST(HostSimtTest, ShufflesStayWithinTheirWarp) {
  std::vector<int64_t> out(64);
  ASSERT_EQ(LaunchKernel(ShuffleKernel, {}, 64, 0, nullptr, {out.data()}), 0);
  for (int64_t t = 0; t < 64; ++t) ASSERT_EQ(out[t], t < 32 ? 31 * 16 : 31 * 16 + 32 * 32);
}

KVTIER_KERNEL void EarlyReturnKernel(Params p) {
  if (ThreadIndex() == 5 && p.variant == 0) return;
  if (p.variant == 1 && ThreadIndex() < 32) {
    ShuffleXor(1, 1);
    return;
  }
  BlockSync();
}

TEST(HostSimtTest, ABarrierThatSomeNeverReachEndsTheLaunch) {
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {}, 64, 0, nullptr, {}), host_simt::kBarrierError);
  EXPECT_THAT(host_simt::LastError(), testing::HasSubstr("63 wait at a block barrier"));
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {}, 64, 0, nullptr, {.variant = 1}),
            host_simt::kBarrierError);
  EXPECT_THAT(host_simt::LastError(), testing::HasSubstr("32 have returned"));
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {}, 64, 0, nullptr, {.variant = 2}), 0)
      << "a launch after a failed one";
}

KVTIER_KERNEL void SharedStartsAsNanKernel(Params p) {
  const bool nan = std::isnan(static_cast<float*>(SharedMemory())[ThreadIndex()]);
  p.out[ThreadIndex()] = nan ? 1 : 0;
}

TEST(HostSimtTest, SharedMemoryStartsAsNan) {
  std::vector<int64_t> out(32);
  ASSERT_EQ(LaunchKernel(SharedStartsAsNanKernel, {}, 32, 128, nullptr, {out.data()}), 0);
  EXPECT_THAT(out, testing::Each(1));
}

// A vector of 16 bytes, from and to addresses that are 16 bytes (or less) past each other.
KVTIER_KERNEL void VectorKernel(Params p) {
  auto* bytes = reinterpret_cast<char*>(p.out);
  if (p.variant == 2) {
    StoreVector(bytes + 8, Vector{});
    return;
  }
  StoreVector(bytes, LoadVector(bytes + 16 - 8 * p.variant));
}

TEST(HostSimtTest, AVectorThatIsNotAlignedEndsTheLaunch) {
  alignas(16) int64_t out[4] = {1, 2, 3, 4};
  EXPECT_EQ(LaunchKernel(VectorKernel, {}, 32, 0, nullptr, {out, 0}), 0);
  EXPECT_THAT(out, testing::ElementsAre(3, 4, 3, 4));
  for (const int variant : {1, 2}) {
    EXPECT_EQ(LaunchKernel(VectorKernel, {.x = 2}, 64, 0, nullptr, {out, variant}),
              host_simt::kAlignmentError);
    EXPECT_THAT(host_simt::LastError(),
                testing::HasSubstr("an address of 8 past a multiple of 16"));
    EXPECT_THAT(out, testing::ElementsAre(3, 4, 3, 4)) << "nothing is written";
  }
  EXPECT_EQ(LaunchKernel(VectorKernel, {}, 32, 0, nullptr, {out, 0}), 0)
      << "a launch after a failed one";
}

TEST(HostSimtTest, RefusesWhatADeviceRefuses) {
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {}, 40, 0, nullptr, {}), kInvalidConfiguration);
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {}, 2048, 0, nullptr, {}), kInvalidConfiguration);
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {}, 32, 1 << 20, nullptr, {}), kInvalidConfiguration);
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {.y = 65536}, 32, 0, nullptr, {}),
            kInvalidConfiguration);
  EXPECT_EQ(LaunchKernel(EarlyReturnKernel, {.x = 0}, 32, 0, nullptr, {}), 0) << "no blocks";
}

}  // namespace
}  // namespace kvtier
