#include "store/host_tier.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

TEST(HostTierTest, BytesThatAReaderHoldsStayCharged) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  const std::unique_ptr<Tier> tier = MakeHostTier(object.manifest->total_bytes());
  KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), object.segments));
  absl::StatusOr<SegmentRef> held = tier->Get(*object.manifest, BandIndex(0), LayerIndex(1));
  KVTIER_ASSERT_OK(held);
  const uint64_t held_bytes = held->bytes().size();
  KVTIER_ASSERT_OK(tier->DropBands(object.manifest->upload_id, 0));
  EXPECT_EQ(tier->Usage().bytes, held_bytes);

  const CompressedObject other = MakeTestObject({.edges = "1", .seed = 2});
  EXPECT_THAT(tier->PutBand(*other.manifest, BandIndex(0), other.segments),
              StatusIs(absl::StatusCode::kResourceExhausted));
  held = absl::NotFoundError("");
  EXPECT_EQ(tier->Usage().bytes, 0u);
  KVTIER_EXPECT_OK(tier->PutBand(*other.manifest, BandIndex(0), other.segments));
}

TEST(HostTierTest, HandsOutTheStoredBytesThemselves) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  const std::unique_ptr<Tier> tier = MakeHostTier(0);
  KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), object.segments));
  KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef segment,
                              tier->Get(*object.manifest, BandIndex(0), LayerIndex(0)));
  EXPECT_EQ(segment.bytes().data(), object.segments[0].bytes().data());
}

TEST(HostTierTest, ASegmentOutlivesTheTier) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  SegmentRef segment;
  {
    const std::unique_ptr<Tier> tier = MakeHostTier(0);
    KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), object.segments));
    segment = *tier->Get(*object.manifest, BandIndex(0), LayerIndex(0));
  }
  EXPECT_EQ(segment.bytes().size(), object.segments[0].bytes().size());
}

}  // namespace
}  // namespace kvtier
