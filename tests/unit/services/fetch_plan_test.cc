#include "services/fetch_plan.h"

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pointee;
using ::testing::StartsWith;
using ::testing::StrEq;

class FetchPlanTest : public testing::Test {
 protected:
  FetchPlanTest() {
    request_.ratio = R(0.3);
    request_.min_ratio = R(0.1);
  }
  static Ratio R(double ratio) { return *Ratio::FromDouble(ratio); }
  absl::StatusOr<FetchPlan> Plan(uint32_t resident_bands = 6) {
    return PlanFetch(manifest_, resident_bands, request_);
  }
  const std::shared_ptr<const Manifest> manifest_ =
      MakeTestObject({.layers = 3, .kv_heads = 4}).manifest;  // Edges .1 .2 .3 .4 .6 1.
  FetchRequest request_;
};

TEST_F(FetchPlanTest, TakesTheSmallestResidentEdgeAtLeastTheRatio) {
  KVTIER_ASSERT_OK_AND_ASSIGN(FetchPlan plan, Plan());
  EXPECT_EQ(plan.band_count, 3u);
  EXPECT_EQ(plan.layers, (LayerRange{0, 3}));
  EXPECT_EQ(plan.heads, (HeadRange{0, 4}));
  EXPECT_EQ(plan.payload_bytes(), manifest_->PrefixBytes(3));

  request_.ratio = R(0.31);
  KVTIER_ASSERT_OK_AND_ASSIGN(plan, Plan());
  EXPECT_EQ(plan.band_count, 4u);
}

TEST_F(FetchPlanTest, FallsBackToWhatIsThereIfItIsAccepted) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const FetchPlan plan, Plan(/*resident_bands=*/2));
  EXPECT_EQ(plan.band_count, 2u);
  request_.min_ratio = R(0.25);
  EXPECT_THAT(Plan(2), StatusIs(absl::StatusCode::kNotFound, IsEmpty()));
  EXPECT_THAT(Plan(0), StatusIs(absl::StatusCode::kNotFound, IsEmpty()));
}

TEST_F(FetchPlanTest, AByteBudgetTakesTheLongestPrefixThatFits) {
  for (uint32_t bands = 1; bands <= 6; ++bands) {
    request_.bytes_max = manifest_->PrefixBytes(bands);
    KVTIER_ASSERT_OK_AND_ASSIGN(FetchPlan plan, Plan());
    EXPECT_EQ(plan.band_count, bands);
    request_.bytes_max = manifest_->PrefixBytes(bands) + 1;
    KVTIER_ASSERT_OK_AND_ASSIGN(plan, Plan());
    EXPECT_EQ(plan.band_count, bands);
  }
  request_.bytes_max = manifest_->PrefixBytes(1) - 1;
  EXPECT_THAT(Plan(), StatusIs(absl::StatusCode::kNotFound));
  request_.bytes_max = manifest_->PrefixBytes(2);
  request_.min_ratio = R(0.3);
  EXPECT_THAT(Plan(), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(FetchPlanTest, RangesAreHeldAgainstTheObject) {
  request_.layers = LayerRange{1, 3};
  request_.heads = HeadRange{3, 4};
  KVTIER_ASSERT_OK_AND_ASSIGN(const FetchPlan plan, Plan());
  uint64_t bytes = 0;
  for (uint32_t band = 0; band < 3; ++band) {
    for (uint32_t layer = 1; layer < 3; ++layer) {
      bytes += manifest_->segment(BandIndex(band), LayerIndex(layer)).heads[3].encoded_bytes;
    }
  }
  EXPECT_EQ(plan.payload_bytes(), bytes);

  request_.layers = LayerRange{1, 4};
  EXPECT_THAT(Plan(), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("layers [1, 4)")));
  request_.layers = LayerRange{2, 2};
  EXPECT_THAT(Plan(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("empty")));
  request_.layers.reset();
  request_.heads = HeadRange{0, 5};
  EXPECT_THAT(Plan(), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("the object has 4")));
  request_.heads = HeadRange{3, 1};
  EXPECT_THAT(Plan(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(FetchPlanTest, ANumberOfBandsThatThereIsNot) {
  EXPECT_THAT(PlanBands(manifest_, 0, request_), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(PlanBands(manifest_, 7, request_), StatusIs(absl::StatusCode::kOutOfRange));
}

TEST_F(FetchPlanTest, BelievesNoManifestButThatOfWhatWasAskedFor) {
  const auto read = [&](absl::string_view encoded) {
    return ReadAnnouncedManifest(AsBytes(encoded), request_, "test stream");
  };
  const auto is_refused = [](const char* why) {
    return StatusIs(absl::StatusCode::kDataLoss, StrEq(absl::StrCat("test stream: ", why)));
  };
  const std::string encoded = EncodeManifest(*manifest_);
  request_.key = manifest_->key;
  EXPECT_THAT(read(encoded), IsOkAndHolds(Pointee(*manifest_)));
  request_.upload_id = manifest_->upload_id;
  EXPECT_THAT(read(encoded), IsOkAndHolds(Pointee(*manifest_)));
  request_.upload_id = MakeTestObject({.seed = 2}).manifest->upload_id;
  EXPECT_THAT(read(encoded), is_refused("another upload"));
  request_.key = MakeTestObject({.seed = 2}).manifest->key;
  EXPECT_THAT(read(encoded), is_refused("another object"));
  EXPECT_THAT(read(encoded.substr(1)),
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("test stream: ")));
}

}  // namespace
}  // namespace kvtier
