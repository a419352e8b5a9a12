#include "kvcache/ids.h"

#include <set>
#include <string>
#include <type_traits>

#include "absl/hash/hash_testing.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr absl::string_view kHex =
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";

TEST(IdsTest, KindsDoNotConvertIntoEachOther) {
  static_assert(!std::is_convertible_v<LayerIndex, BandIndex>);
  static_assert(!std::is_constructible_v<LayerIndex, BandIndex>);
  static_assert(!std::is_convertible_v<uint32_t, LayerIndex>);
  static_assert(!std::is_convertible_v<LayerIndex, uint32_t>);
  static_assert(!std::is_convertible_v<Key, Digest>);
  static_assert(!std::is_constructible_v<Key, Digest>);
  static_assert(!std::is_constructible_v<TokenBlockHash, Key>);
  static_assert(std::is_trivially_copyable_v<Key> && std::is_trivially_copyable_v<LayerIndex>);
}

TEST(IdsTest, HexRoundTrips) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const Key key, Key::FromHex(kHex));
  EXPECT_EQ(key.ToHex(), kHex);
  EXPECT_EQ(std::to_integer<int>(key.bytes()[31]), 0xff);
  EXPECT_THAT(Key::FromHex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1EFF"),
              IsOkAndHolds(key));
}

TEST(IdsTest, BytesRoundTrip) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const Key key, Key::FromHex(kHex));
  EXPECT_THAT(Key::FromBytes(key.AsStringView()), IsOkAndHolds(key));
  EXPECT_THAT(Key::FromBytes(ByteSpan(key.bytes())), IsOkAndHolds(key));
}

TEST(IdsTest, RefusesWrongLengthAndWrongDigits) {
  EXPECT_THAT(Key::FromHex(""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Key::FromHex(kHex.substr(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 64")));
  EXPECT_THAT(Key::FromHex(std::string(64, 'g')), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Key::FromHex(std::string(62, '0') + "0x"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Key::FromBytes(std::string(31, 'a')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 32")));
  EXPECT_THAT(UploadId::FromBytes(std::string(32, 'a')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected 16")));
}

TEST(IdsTest, ZeroIsTheDefault) {
  EXPECT_TRUE(Key().IsZero());
  EXPECT_FALSE(Key::FromHex(kHex)->IsZero());
}

TEST(IdsTest, OrderIsThatOfTheBytes) {
  EXPECT_LT(UploadId::FromHex("0000000000000000000000000000007f").value(),
            UploadId::FromHex("00000000000000000000000000000080").value());
  EXPECT_LT(LayerIndex(3), LayerIndex(10));
}

TEST(IdsTest, UploadIdsAreFresh) {
  std::set<UploadId> seen;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(seen.insert(MakeUploadId()).second);
}

TEST(IdsTest, TenantNames) {
  EXPECT_EQ(TenantId().name(), "default");
  EXPECT_EQ(TenantId::FromString("default").value(), TenantId());
  EXPECT_EQ(TenantId::FromString("team-a_1.eu")->name(), "team-a_1.eu");
  KVTIER_EXPECT_OK(TenantId::FromString(std::string(limits::kTenantBytesMax, 'a')));
  for (const std::string& name :
       {std::string(), std::string("a/b"), std::string("a b"), std::string("a\0b", 3),
        std::string("\xc3\xa9"), std::string(limits::kTenantBytesMax + 1, 'a')}) {
    EXPECT_THAT(TenantId::FromString(name), StatusIs(absl::StatusCode::kInvalidArgument)) << name;
  }
}

TEST(IdsTest, SegmentIdHashesAndPrints) {
  const SegmentId a{TenantId(), Key::FromHex(kHex).value(),
                    UploadId::FromHex("9f8e0000000000000000000000000001").value(), BandIndex(2),
                    LayerIndex(5)};
  SegmentId other_band = a;
  other_band.band = BandIndex(5);
  SegmentId swapped = a;
  swapped.band = BandIndex(5);
  swapped.layer = LayerIndex(2);
  SegmentId other_tenant = a;
  other_tenant.tenant = TenantId::FromString("b").value();
  SegmentId other_upload = a;
  other_upload.upload = UploadId();
  EXPECT_TRUE(absl::VerifyTypeImplementsAbslHashCorrectly(
      {a, other_band, swapped, other_tenant, other_upload, SegmentId()}));
  EXPECT_EQ(ToString(a), "key 00010203.. upload 9f8e0000.. band 2 layer 5");
}

}  // namespace
}  // namespace kvtier
