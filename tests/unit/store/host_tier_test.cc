#include "store/host_tier.h"

#include <algorithm>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/upload.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

TEST(HostTierTest, BytesThatAReaderHoldsStayCharged) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  const std::unique_ptr<HostTier> tier = MakeHostTier(object.manifest->total_bytes());
  KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), object.segments));
  absl::StatusOr<SegmentRef> held = tier->Get(*object.manifest, BandIndex(0), LayerIndex(1));
  KVTIER_ASSERT_OK(held);
  KVTIER_ASSERT_OK(tier->DropBands(object.manifest->upload_id, 0));
  EXPECT_EQ(tier->Usage().bytes, object.manifest->total_bytes()) << "a segment holds its band";

  const CompressedObject other = MakeTestObject({.edges = "1", .seed = 2});
  EXPECT_THAT(tier->PutBand(*other.manifest, BandIndex(0), other.segments),
              StatusIs(absl::StatusCode::kResourceExhausted));
  held = absl::NotFoundError("");
  EXPECT_EQ(tier->Usage().bytes, 0u);
  KVTIER_EXPECT_OK(tier->PutBand(*other.manifest, BandIndex(0), other.segments));
}

TEST(HostTierTest, TakesOverABandOfAnUploadWithoutCopyOrSecondCharge) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  const auto memory =
      HostMemory::Create({}, std::make_shared<MemoryBudget>(object.manifest->total_bytes()));
  const std::unique_ptr<HostTier> tier = MakeHostTier(memory);
  std::shared_ptr<Upload> upload = *Upload::Create(object.manifest, *memory);
  KVTIER_ASSERT_OK(upload->Append(0, ConcatenateSegments(object)));
  const std::vector<SegmentRef> segments = upload->segments();
  EXPECT_EQ(tier->ChargeOf(*object.manifest, BandIndex(0), segments), 0u);
  EXPECT_EQ(tier->ChargeOf(*object.manifest, BandIndex(0), object.segments),
            object.manifest->total_bytes());
  KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), segments));
  upload.reset();
  EXPECT_EQ(tier->Usage().bytes, object.manifest->total_bytes());
  KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef segment,
                              tier->Get(*object.manifest, BandIndex(0), LayerIndex(0)));
  EXPECT_EQ(segment.bytes().data(), segments[0].bytes().data());
  EXPECT_EQ(tier->Band(object.manifest->upload_id, BandIndex(0))->Segment(LayerIndex(0)).owner(),
            segments[0].owner());
  EXPECT_EQ(tier->Band(object.manifest->upload_id, BandIndex(1)), nullptr);
}

TEST(HostTierTest, CopiesSegmentsThatLieElsewhere) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  const std::unique_ptr<HostTier> tier = MakeHostTier(0);
  KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), object.segments));
  KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef segment,
                              tier->Get(*object.manifest, BandIndex(0), LayerIndex(1)));
  EXPECT_NE(segment.bytes().data(), object.segments[1].bytes().data());
  EXPECT_TRUE(std::ranges::equal(segment.bytes(), object.segments[1].bytes()));
}

TEST(HostTierTest, ASegmentOutlivesTheTier) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  SegmentRef segment;
  {
    const std::unique_ptr<HostTier> tier = MakeHostTier(0);
    KVTIER_ASSERT_OK(tier->PutBand(*object.manifest, BandIndex(0), object.segments));
    segment = *tier->Get(*object.manifest, BandIndex(0), LayerIndex(0));
  }
  EXPECT_TRUE(std::ranges::equal(segment.bytes(), object.segments[0].bytes()));
}

}  // namespace
}  // namespace kvtier
