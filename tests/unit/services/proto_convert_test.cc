#include "services/proto_convert.h"

#include <cmath>
#include <limits>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

TEST(ProtoConvertTest, IdsHaveExactlyTheirLength) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const Key key, KeyFromProto(std::string(32, 'k')));
  EXPECT_EQ(key.AsStringView(), std::string(32, 'k'));
  for (const size_t bytes : {0, 31, 33, 64}) {
    EXPECT_THAT(KeyFromProto(std::string(bytes, 'k')),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("key has")));
  }
  EXPECT_THAT(UploadIdFromProto(std::string(15, 'u')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("upload_id has 15 bytes")));
}

TEST(ProtoConvertTest, ExtentDefaults) {
  FetchRequest request;
  v1::Extent extent;
  KVTIER_ASSERT_OK(ExtentFromProto(extent, request));
  EXPECT_EQ(request.ratio.millionths(), 1'000'000u);
  EXPECT_EQ(request.min_ratio.millionths(), 1'000'000u);
  EXPECT_FALSE(request.bytes_max.has_value());

  extent.set_ratio(0.3);
  KVTIER_ASSERT_OK(ExtentFromProto(extent, request));
  EXPECT_EQ(request.ratio.millionths(), 300'000u);
  EXPECT_EQ(request.min_ratio.millionths(), 300'000u);

  extent.set_bytes_max(77);
  KVTIER_ASSERT_OK(ExtentFromProto(extent, request));
  EXPECT_EQ(request.bytes_max, 77u);
  EXPECT_EQ(request.min_ratio.millionths(), 1u) << "any";
}

TEST(ProtoConvertTest, BadRatiosAreRefusedByName) {
  const double bad[] = {-0.1,
                        1.000001,
                        std::nan(""),
                        std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity(),
                        1e-9};
  for (const double value : bad) {
    SCOPED_TRACE(value);
    FetchRequest request;
    v1::Extent extent;
    extent.set_ratio(value);
    EXPECT_THAT(ExtentFromProto(extent, request),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ratio")));
    extent.set_ratio(1);
    extent.set_min_ratio(value);
    EXPECT_THAT(ExtentFromProto(extent, request),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("min_ratio")));
  }
  FetchRequest request;
  v1::Extent extent;
  extent.set_ratio(0.2);
  extent.set_min_ratio(0.3);
  EXPECT_THAT(ExtentFromProto(extent, request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("above ratio")));
}

TEST(ProtoConvertTest, AFetchRequestComesBackAsItWas) {
  FetchRequest request;
  request.key = *Key::FromBytes(absl::string_view(std::string(32, '7')));
  request.upload_id = *UploadId::FromBytes(absl::string_view(std::string(16, '8')));
  request.ratio = *Ratio::FromMillionths(333'333);
  request.min_ratio = *Ratio::FromMillionths(1);
  request.bytes_max = 12345;
  request.layers = LayerRange{2, 9};
  request.heads = HeadRange{0, 4};
  KVTIER_ASSERT_OK_AND_ASSIGN(const FetchRequest back,
                              FetchRequestFromProto(TenantId(), FetchRequestToProto(request)));
  EXPECT_EQ(back.key, request.key);
  EXPECT_EQ(back.upload_id, request.upload_id);
  EXPECT_EQ(back.ratio, request.ratio);
  EXPECT_EQ(back.min_ratio, request.min_ratio);
  EXPECT_EQ(back.bytes_max, request.bytes_max);
  EXPECT_EQ(back.layers, request.layers);
  EXPECT_EQ(back.heads, request.heads);
}

TEST(ProtoConvertTest, UnspecifiedDurabilityIsTheBestThereIs) {
  EXPECT_THAT(DurabilityFromProto(v1::DURABILITY_UNSPECIFIED, true),
              IsOkAndHolds(Durability::kDisk));
  EXPECT_THAT(DurabilityFromProto(v1::DURABILITY_UNSPECIFIED, false),
              IsOkAndHolds(Durability::kHost));
  EXPECT_THAT(DurabilityFromProto(v1::DURABILITY_HOST, true), IsOkAndHolds(Durability::kHost));
  EXPECT_THAT(DurabilityFromProto(static_cast<v1::Durability>(9), true),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace kvtier
