#include "base/limits.h"

#include <limits>

#include "gtest/gtest.h"

namespace kvtier::limits {
namespace {

// Relations that the code relies on; the values themselves are a choice.

TEST(LimitsTest, ProductsOfFieldsStayInside64Bits) {
  // The largest object that the single bounds allow, counted in bytes of fp32 keys and values.
  const uint64_t row_bytes = 2 * uint64_t{kHeadDimMax} * 4;
  // A head has a row per token at most.
  const uint64_t rows = uint64_t{kContextTokensMax} * kKvHeadsMax * kLayersMax;
  EXPECT_LT(rows, std::numeric_limits<uint64_t>::max() / row_bytes);
}

TEST(LimitsTest, AFrameFitsAMessageAndASegmentAnObject) {
  EXPECT_LT(kFrameBytesMax, kControlMessageBytesMax);
  EXPECT_LT(kSegmentBytesMax, kObjectBytesMax);
  EXPECT_LE(kSystemTokensMax, kContextTokensMax);
}

TEST(LimitsTest, ADescriptorFitsAControlMessage) {
  EXPECT_LT(kKeyDescriptorBytesMax, kControlMessageBytesMax);
}

TEST(LimitsTest, AManifestThatReachesEveryBoundFits) {
  EXPECT_LE(uint64_t{kBandsMax} * kLayersMax * kKvHeadsMax * 24, kManifestBytesMax);
}

}  // namespace
}  // namespace kvtier::limits
