#include "compressor/device_tier.h"

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::absl::StatusCode;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DeviceTierTest : public testing::Test {
 protected:
  CompressedObject Object(uint64_t seed, uint64_t upload_seed = 0) {
    return MakeTestObject({.seed = seed, .upload_seed = upload_seed});
  }
  // All test objects of one shape have about this size; the largest of them decides.
  uint64_t BytesOf(const CompressedObject& object) { return object.manifest->total_bytes(); }

  std::shared_ptr<const DeviceObject> Pinned(DeviceTier& tier, const CompressedObject& object) {
    absl::StatusOr<std::shared_ptr<const DeviceObject>> pin =
        tier.Pin(TenantId(), object.manifest->key, object.manifest->upload_id);
    return pin.ok() ? *pin : nullptr;
  }
  // Every resident segment, byte for byte.
  void ExpectHolds(const DeviceObject& pin, const CompressedObject& object, uint32_t bands) {
    EXPECT_EQ(*pin.manifest(), *object.manifest);
    ASSERT_EQ(pin.resident_bands(), bands);
    for (uint32_t band = 0; band < bands; ++band) {
      for (uint32_t layer = 0; layer < object.manifest->geometry.layer_count(); ++layer) {
        const auto expected = object.segment(BandIndex(band), LayerIndex(layer)).bytes();
        const TensorView held = pin.segment(BandIndex(band), LayerIndex(layer));
        std::vector<std::byte> bytes(expected.size());
        if (!bytes.empty()) {
          KVTIER_ASSERT_OK(device_.Download(held, bytes));
        }
        EXPECT_TRUE(std::ranges::equal(bytes, expected)) << "band " << band << " layer " << layer;
      }
    }
  }

  FakeDeviceBackend device_{"fake:0"};
};

TEST_F(DeviceTierTest, KeepsEverySegmentAsItIs) {
  DeviceTier tier({.bytes_max = 64 << 20}, device_);
  const CompressedObject object = Object(1);
  EXPECT_THAT(tier.Insert(TenantId(), object), IsOkAndHolds(6));
  const auto pin = Pinned(tier, object);
  ASSERT_NE(pin, nullptr);
  ExpectHolds(*pin, object, 6);
  EXPECT_EQ(tier.usage().objects, 1u);
  EXPECT_EQ(tier.usage().bytes, BytesOf(object));
  EXPECT_EQ(device_.live_bytes(), BytesOf(object));
}

TEST_F(DeviceTierTest, SegmentsWithoutBytesTakeNoMemory) {
  const CompressedObject object =
      MakeTestObject({.layers = 4, .kv_heads = 4, .system_tokens = 0, .context_tokens = 3});
  DeviceTier tier({.bytes_max = 64 << 20}, device_);
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), object));
  ExpectHolds(*Pinned(tier, object), object, 6);
  EXPECT_EQ(device_.live_bytes(), BytesOf(object));
}

TEST_F(DeviceTierTest, AMissSaysNothingAndAnotherUploadIsAborted) {
  DeviceTier tier({.bytes_max = 64 << 20}, device_);
  const CompressedObject object = Object(1);
  EXPECT_THAT(tier.Pin(TenantId(), object.manifest->key, std::nullopt),
              StatusIs(StatusCode::kNotFound, IsEmpty()));
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), object));
  KVTIER_EXPECT_OK(tier.Pin(TenantId(), object.manifest->key, std::nullopt));
  EXPECT_THAT(tier.Pin(TenantId(), object.manifest->key, Object(1, 7).manifest->upload_id),
              StatusIs(StatusCode::kAborted));
  EXPECT_THAT(tier.Pin(*TenantId::FromString("b"), object.manifest->key, std::nullopt),
              StatusIs(StatusCode::kNotFound));
  EXPECT_EQ(tier.usage().hits, 1u);
  EXPECT_EQ(tier.usage().misses, 3u);
}

TEST_F(DeviceTierTest, TheObjectUsedLongestAgoGoesFirst) {
  const CompressedObject a = Object(1), b = Object(2), c = Object(3);
  DeviceTier tier({.bytes_max = std::max(BytesOf(a) + BytesOf(b), BytesOf(a) + BytesOf(c))},
                  device_);
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), a));
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), b));
  ASSERT_NE(Pinned(tier, a), nullptr);  // Now b is the one.
  EXPECT_THAT(tier.Insert(TenantId(), c), IsOkAndHolds(6));
  EXPECT_NE(Pinned(tier, a), nullptr);
  EXPECT_EQ(Pinned(tier, b), nullptr);
  EXPECT_NE(Pinned(tier, c), nullptr);
  EXPECT_EQ(tier.usage().evicted, 1u);
  EXPECT_EQ(device_.live_bytes(), BytesOf(a) + BytesOf(c));
}

TEST_F(DeviceTierTest, WhatIsReadIsNeitherFreedNorForgottenInTheAccount) {
  const CompressedObject a = Object(1), b = Object(2);
  const uint64_t room = std::max(BytesOf(a), BytesOf(b)) + b.manifest->PrefixBytes(2);
  DeviceTier tier({.bytes_max = room}, device_);
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), a));
  auto pin = Pinned(tier, a);
  // b does not fit beside it: it keeps what does.
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint32_t bands, tier.Insert(TenantId(), b));
  EXPECT_GE(bands, 2u);
  EXPECT_LT(bands, 6u);
  EXPECT_EQ(tier.usage().shortened, 1u);
  EXPECT_EQ(tier.usage().evicted, 0u);
  ExpectHolds(*Pinned(tier, b), b, bands);
  ExpectHolds(*pin, a, 6);
  // Removed, it still counts until it is let go of.
  tier.Remove(TenantId(), a.manifest->key);
  EXPECT_EQ(tier.usage().bytes, BytesOf(a) + b.manifest->PrefixBytes(bands));
  ExpectHolds(*pin, a, 6);
  pin.reset();
  EXPECT_EQ(tier.usage().bytes, b.manifest->PrefixBytes(bands));
  EXPECT_EQ(device_.live_bytes(), tier.usage().bytes);
}

TEST_F(DeviceTierTest, NothingIsKeptWhereNotEvenBandZeroFits) {
  const CompressedObject a = Object(1), b = Object(2);
  DeviceTier tier({.bytes_max = BytesOf(a) + b.manifest->PrefixBytes(1) - 1}, device_);
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), a));
  const auto pin = Pinned(tier, a);
  EXPECT_THAT(tier.Insert(TenantId(), b),
              StatusIs(StatusCode::kResourceExhausted,
                       HasSubstr(absl::StrCat(b.manifest->PrefixBytes(1)))));
  EXPECT_EQ(Pinned(tier, b), nullptr);
  EXPECT_EQ(tier.usage().refused, 1u);
  DeviceTier none({.bytes_max = 0}, device_);
  EXPECT_THAT(none.Insert(TenantId(), a), StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(DeviceTierTest, AnObjectLargerThanTheTierKeepsItsLowestBands) {
  const CompressedObject object = Object(1);
  for (uint32_t bands = 1; bands <= 6; ++bands) {
    DeviceTier tier({.bytes_max = object.manifest->PrefixBytes(bands)}, device_);
    EXPECT_THAT(tier.Insert(TenantId(), object), IsOkAndHolds(bands));
    ExpectHolds(*Pinned(tier, object), object, bands);
  }
  EXPECT_EQ(device_.live_bytes(), 0u);
}

TEST_F(DeviceTierTest, AnotherUploadReplacesTheOneThatIsThere) {
  DeviceTier tier({.bytes_max = 64 << 20}, device_);
  const CompressedObject first = Object(1, 1), second = Object(1, 2);
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), first));
  const auto pin = Pinned(tier, first);
  KVTIER_ASSERT_OK(tier.Insert(TenantId(), second));
  EXPECT_EQ(Pinned(tier, first), nullptr);
  ExpectHolds(*Pinned(tier, second), second, 6);
  ExpectHolds(*pin, first, 6);  // Who reads it reads on.
  EXPECT_EQ(tier.usage().objects, 1u);
}

TEST_F(DeviceTierTest, ADeviceThatFailsLeavesNothingBehind) {
  const CompressedObject object = Object(1);
  {
    DeviceTier tier({.bytes_max = 64 << 20}, device_);
    device_.Break();
    EXPECT_THAT(tier.Insert(TenantId(), object),
                StatusIs(StatusCode::kInternal, HasSubstr("lost")));
    EXPECT_EQ(Pinned(tier, object), nullptr);
    EXPECT_EQ(tier.usage().bytes, 0u);
    EXPECT_EQ(tier.usage().refused, 1u);
  }
  FakeDeviceBackend small("fake:1", object.manifest->PrefixBytes(2));
  DeviceTier tier({.bytes_max = 64 << 20}, small);
  EXPECT_THAT(tier.Insert(TenantId(), object), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_EQ(small.live_bytes(), 0u);
  EXPECT_EQ(tier.usage().bytes, 0u);
}

TEST_F(DeviceTierTest, APinOutlivesTheTier) {
  const CompressedObject object = Object(1);
  auto tier = std::make_unique<DeviceTier>(DeviceTier::Options{.bytes_max = 64 << 20}, device_);
  KVTIER_ASSERT_OK(tier->Insert(TenantId(), object));
  const auto pin = Pinned(*tier, object);
  tier.reset();
  ExpectHolds(*pin, object, 6);
}

TEST_F(DeviceTierTest, ManyAtOnceNeverExceedTheBound) {
  std::vector<CompressedObject> objects;
  for (uint64_t seed = 1; seed <= 5; ++seed) objects.push_back(Object(seed));
  const uint64_t bytes_max = BytesOf(objects[0]) + BytesOf(objects[1]) + BytesOf(objects[2]) / 2;
  // The device has no byte more: an insertion that takes room which is not free yet would fail.
  FakeDeviceBackend device("fake:2", bytes_max);
  DeviceTier tier({.bytes_max = bytes_max}, device);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (uint32_t round = 0; round < 50; ++round) {
        const CompressedObject& object = objects[(i + round * (i + 1)) % objects.size()];
        const absl::Status inserted = tier.Insert(TenantId(), object).status();
        if (!inserted.ok()) {
          EXPECT_THAT(inserted.message(), HasSubstr("band 0"));
        }
        if (const auto pin = Pinned(tier, object); pin != nullptr) {
          ExpectHolds(*pin, object, pin->resident_bands());
        }
        EXPECT_LE(tier.usage().bytes, bytes_max);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tier.usage().bytes, device.live_bytes());
}

}  // namespace
}  // namespace kvtier
