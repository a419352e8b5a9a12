#include "store/disk_format.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/test_object.h"

namespace kvtier::disk_format {
namespace {

const absl::Time kSealedAt = absl::FromUnixNanos(1'767'225'600'123'456'789);

TEST(DiskFormatTest, PartKeysSortByUploadBandLayerPart) {
  const UploadId upload = *UploadId::FromHex("00112233445566778899aabbccddeeff");
  std::vector<std::string> keys;
  for (const uint32_t band : {0u, 1u, 15u}) {
    for (const uint32_t layer : {0u, 255u, 256u}) {
      for (const uint32_t part : {0u, 1u, 70'000u}) {
        keys.push_back(PartKey(upload, BandIndex(band), LayerIndex(layer), part));
      }
    }
  }
  EXPECT_TRUE(std::ranges::is_sorted(keys));
  for (const std::string& key : keys) {
    EXPECT_GE(key, BandBegin(upload, BandIndex(0)));
    EXPECT_LT(key, UploadEnd(upload));
    ASSERT_TRUE(ParsePartKey(key).has_value());
    EXPECT_EQ(ParsePartKey(key)->upload, upload);
  }
  EXPECT_EQ(ParsePartKey(keys.back())->band, BandIndex(15));
  EXPECT_EQ(ParsePartKey("short"), std::nullopt);
  // Golden: the layout on disk.
  EXPECT_EQ(ToString(AsBytes(PartKey(upload, BandIndex(1), LayerIndex(2), 3))),
            std::string("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
                        "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03",
                        28));
}

TEST(DiskFormatTest, ObjectRecordsComeBack) {
  const TenantId tenant = *TenantId::FromString("acme.prod");
  const CompressedObject object = MakeTestObject({});
  const std::string key = ObjectRecordKey(tenant, object.manifest->key);
  const std::string value = EncodeObjectRecord(tenant, *object.manifest, kSealedAt);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectRecord record, DecodeObjectRecord(key, value));
  EXPECT_EQ(record.name, (ObjectName{tenant, object.manifest->key}));
  EXPECT_EQ(record.manifest, *object.manifest);
  EXPECT_EQ(record.sealed_at, kSealedAt);
}

TEST(DiskFormatTest, EveryDamagedObjectRecordIsRefused) {
  const TenantId tenant;
  const CompressedObject object = MakeTestObject({.layers = 1, .edges = "0.5,1"});
  const std::string key = ObjectRecordKey(tenant, object.manifest->key);
  const std::string value = EncodeObjectRecord(tenant, *object.manifest, kSealedAt);
  for (size_t i = 0; i < value.size(); ++i) {
    std::string damaged = value;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
    EXPECT_THAT(DecodeObjectRecord(key, damaged), StatusIs(absl::StatusCode::kDataLoss)) << i;
    EXPECT_THAT(DecodeObjectRecord(key, value.substr(0, i)), StatusIs(absl::StatusCode::kDataLoss));
  }
  for (size_t i = 0; i < key.size(); ++i) {
    std::string damaged = key;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    EXPECT_THAT(DecodeObjectRecord(damaged, value), StatusIs(absl::StatusCode::kDataLoss)) << i;
  }
}

TEST(DiskFormatTest, ResidencyRecordsComeBackOrAreRefused) {
  const UploadId upload = MakeTestObject({}).manifest->upload_id;
  const std::string value = EncodeResidencyRecord(upload, 4);
  EXPECT_THAT(DecodeResidencyRecord(upload, value), IsOkAndHolds(4u));
  const UploadId other = MakeTestObject({.seed = 2}).manifest->upload_id;
  EXPECT_THAT(DecodeResidencyRecord(other, value), StatusIs(absl::StatusCode::kDataLoss));
  for (size_t i = 0; i < value.size(); ++i) {
    std::string damaged = value;
    damaged[i] = static_cast<char>(damaged[i] ^ 16);
    EXPECT_THAT(DecodeResidencyRecord(upload, damaged), StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_THAT(DecodeResidencyRecord(upload, value.substr(0, i)),
                StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST(DiskFormatTest, AttributesRecordsComeBackAndDamagedOnesAreRefused) {
  const UploadId upload = *UploadId::FromHex("00112233445566778899aabbccddeeff");
  for (const ObjectAttributes& attributes :
       {ObjectAttributes(), ObjectAttributes{.pinned = true},
        ObjectAttributes{.pinned = true, .expires_at = kSealedAt}}) {
    const std::string value = EncodeAttributesRecord(upload, attributes);
    EXPECT_THAT(DecodeAttributesRecord(upload, value), IsOkAndHolds(attributes));
    for (size_t i = 0; i < value.size(); ++i) {
      std::string damaged = value;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
      EXPECT_THAT(DecodeAttributesRecord(upload, damaged), StatusIs(absl::StatusCode::kDataLoss));
      EXPECT_THAT(DecodeAttributesRecord(upload, value.substr(0, i)),
                  StatusIs(absl::StatusCode::kDataLoss));
    }
    EXPECT_THAT(DecodeAttributesRecord(UploadId(), value), StatusIs(absl::StatusCode::kDataLoss));
  }
  // Golden: the layout on disk.
  EXPECT_EQ(EncodeAttributesRecord(
                upload, {.pinned = true, .expires_at = absl::FromUnixNanos(0x0102030405060708)})
                .substr(0, 16),
            std::string("\x01\0\0\0\x01\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01", 16));
}

TEST(DiskFormatTest, OtherFormatsAreRefusedByName) {
  EXPECT_THAT(ParseFormatFile(EncodeFormatFile()), IsOkAndHolds(kStoreFormatVersion));
  EXPECT_THAT(ParseFormatFile("kvtier store format 1\n"), IsOkAndHolds(1u));
  EXPECT_THAT(ParseFormatFile("kvtier store format 3\n"),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       testing::HasSubstr("format 3, this build reads formats 1 to 2")));
  EXPECT_THAT(ParseFormatFile("kvtier store format 0\n"),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("format 0")));
  for (const char* text : {"", "kvtier store format 1", "kvtier store format one\n", "1\n"}) {
    EXPECT_THAT(ParseFormatFile(text), StatusIs(absl::StatusCode::kFailedPrecondition)) << text;
  }
}

}  // namespace
}  // namespace kvtier::disk_format
