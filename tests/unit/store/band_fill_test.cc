#include "store/band_fill.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

constexpr uint64_t kLayerBytes = 64;

class BandFillTest : public testing::Test {
 protected:
  // A band of so many layers; the ones in `empty` have no bytes.
  void Begin(uint32_t layers, const std::vector<uint32_t>& empty = {}) {
    BandEntry band;
    for (uint32_t layer = 0; layer < layers; ++layer) {
      const bool is_empty = std::ranges::find(empty, layer) != empty.end();
      band.layers.emplace_back().heads.push_back(
          {.rows = is_empty ? 0u : 1u, .encoded_bytes = is_empty ? 0 : kLayerBytes, .crc32c = {}});
    }
    absl::StatusOr<std::shared_ptr<BandMemory>> memory = memory_->Allocate(band);
    KVTIER_CHECK_OK(memory);
    fill_ = std::make_unique<BandFill>(*std::move(memory));
  }
  static std::string Bytes(uint32_t layer) {
    return std::string(kLayerBytes, static_cast<char>('a' + layer));
  }
  bool Add(uint32_t layer) { return fill_->Add(LayerIndex(layer), AsBytes(Bytes(layer))); }
  static bool Has(const BandMemory& band, uint32_t layer) {
    const SegmentRef segment = band.Segment(LayerIndex(layer));
    const std::string bytes = Bytes(layer);
    return std::ranges::equal(segment.bytes(), AsBytes(bytes));
  }
  uint64_t used_bytes() { return budget_->usage().used_bytes; }

  const std::shared_ptr<MemoryBudget> budget_ = std::make_shared<MemoryBudget>(1 << 20);
  const std::shared_ptr<HostMemory> memory_ = HostMemory::Create({}, budget_);
  std::unique_ptr<BandFill> fill_;
};

TEST_F(BandFillTest, IsWholeWithTheLastLayer) {
  Begin(4, {0, 2});
  EXPECT_FALSE(Add(1));
  EXPECT_EQ(fill_->TakeWhole(), nullptr);
  EXPECT_TRUE(Add(3));
  const auto band = fill_->TakeWhole();
  ASSERT_NE(band, nullptr);
  EXPECT_TRUE(Has(*band, 1));
  EXPECT_TRUE(Has(*band, 3));
  EXPECT_EQ(fill_->TakeWhole(), nullptr) << "handed out once";
}

TEST_F(BandFillTest, TakesLayersALittleOutOfOrderAndEachOnce) {
  Begin(5);
  EXPECT_FALSE(Add(1));
  EXPECT_FALSE(Add(0));
  EXPECT_FALSE(Add(4));
  EXPECT_FALSE(fill_->Add(LayerIndex(4), AsBytes(Bytes(0)))) << "passed over";
  EXPECT_FALSE(Add(3));
  EXPECT_TRUE(Add(2));
  const auto band = fill_->TakeWhole();
  ASSERT_NE(band, nullptr);
  for (uint32_t layer = 0; layer < 5; ++layer) EXPECT_TRUE(Has(*band, layer)) << layer;
}

TEST_F(BandFillTest, IsGivenUpFarBehindALayerThatWasLeftOut) {
  Begin(8);
  Add(0);
  for (uint32_t layer = 2; layer < 6; ++layer) Add(layer);
  EXPECT_GT(used_bytes(), 0u);
  Add(6);
  EXPECT_EQ(used_bytes(), 0u);
  EXPECT_FALSE(Add(1));
  EXPECT_FALSE(Add(7));
}

TEST_F(BandFillTest, FreesItsMemoryWhenItIsAbandoned) {
  Begin(2);
  Add(0);
  fill_->Abandon();
  EXPECT_EQ(used_bytes(), 0u);
  EXPECT_FALSE(Add(1));
  Begin(1);
  EXPECT_TRUE(Add(0));
  fill_->Abandon();
  EXPECT_EQ(used_bytes(), 0u) << "whole, but not taken";
  EXPECT_EQ(fill_->TakeWhole(), nullptr);
}

}  // namespace
}  // namespace kvtier
