// Ranking at sizes where CUB really sorts (a single tile takes up to 4,864 pairs) and threads take
// several pairs each: what no emulator can show.
#include <memory>

#include "base/status_matchers.h"
#include "cuda/cuda_device.h"
#include "gtest/gtest.h"
#include "tests/conformance/device_ranking_conformance.h"
#include "tests/gpu/gpu_check.h"

namespace kvtier {
namespace {

TEST(CudaRankingTest, SortsAsTheStandardLibrary) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Device> device,
                              MakeCudaDevice(DeviceUnderTest()));
  for (const int64_t count : {1, 4864, 4865, 100'003, (1 << 21) + 7}) {
    for (const int bits : kSortBits) ExpectSortsStably(device, count, bits);
  }
}

// More pairs than threads, and bands that several blocks sum up, of all pairs and of each row.
TEST(CudaRankingTest, RanksMorePairsThanThreads) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Device> device,
                              MakeCudaDevice(DeviceUnderTest()));
  const ScoreTable scores = RandomScoreTable(2, 4, 150'001);
  for (const SelectionRule rule :
       {SelectionRule::kExact, SelectionRule::kPerHead, SelectionRule::kKvpress}) {
    ExpectRanksAsTheHost(device, scores, rule);
  }
}

}  // namespace
}  // namespace kvtier
