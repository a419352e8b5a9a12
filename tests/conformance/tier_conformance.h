// The contract of store/tier.h, case by case, for every implementation. An instantiation names a
// function that makes an empty tier:
//
//   INSTANTIATE_TEST_SUITE_P(Host, TierConformanceTest, testing::Values(TierCase{...}));
#ifndef KVTIER_TESTS_CONFORMANCE_TIER_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_TIER_CONFORMANCE_H_

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/compressed_object.h"
#include "store/tier.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {

struct TierCase {
  std::string name;
  // `folder` exists, is empty and is the tier's alone. A budget of 0 is none.
  std::function<std::unique_ptr<Tier>(const std::string& folder, uint64_t budget_bytes)> make;
};
inline void PrintTo(const TierCase& tier_case, std::ostream* os) { *os << tier_case.name; }

class TierConformanceTest : public testing::TestWithParam<TierCase> {
 protected:
  TierConformanceTest() { Open(/*budget_bytes=*/0); }

  void Open(uint64_t budget_bytes) {
    tier_.reset();
    dirs_.push_back(std::make_unique<TempDir>());
    tier_ = GetParam().make(dirs_.back()->path(), budget_bytes);
    ASSERT_NE(tier_, nullptr);
  }

  static std::vector<SegmentRef> Layers(const CompressedObject& object, uint32_t band) {
    const size_t layers = object.manifest->geometry.layer_count();
    const auto begin = object.segments.begin() + static_cast<ptrdiff_t>(band * layers);
    return {begin, begin + static_cast<ptrdiff_t>(layers)};
  }
  absl::Status PutBand(const CompressedObject& object, uint32_t band) {
    return tier_->PutBand(*object.manifest, BandIndex(band), Layers(object, band));
  }
  void PutAll(const CompressedObject& object) {
    for (uint32_t band = 0; band < object.manifest->bands.size(); ++band) {
      KVTIER_ASSERT_OK(PutBand(object, band));
    }
  }
  absl::StatusOr<SegmentRef> Get(const CompressedObject& object, uint32_t band, uint32_t layer) {
    return tier_->Get(*object.manifest, BandIndex(band), LayerIndex(layer));
  }
  // Exactly bands [0, band_count) are there, byte for byte.
  void ExpectBands(const CompressedObject& object, uint32_t band_count) {
    EXPECT_EQ(tier_->BandCount(object.manifest->upload_id), band_count);
    for (uint32_t band = 0; band < object.manifest->bands.size(); ++band) {
      for (uint32_t layer = 0; layer < object.manifest->geometry.layer_count(); ++layer) {
        SCOPED_TRACE(testing::Message() << "band " << band << " layer " << layer);
        const absl::StatusOr<SegmentRef> segment = Get(object, band, layer);
        if (band >= band_count) {
          EXPECT_THAT(segment, StatusIs(absl::StatusCode::kNotFound, testing::IsEmpty()));
          continue;
        }
        ASSERT_THAT(segment, IsOk());
        const SegmentRef& expected = object.segment(BandIndex(band), LayerIndex(layer));
        EXPECT_TRUE(std::ranges::equal(segment->bytes(), expected.bytes()));
        EXPECT_EQ(reinterpret_cast<uintptr_t>(segment->bytes().data()) % 64, 0u);
      }
    }
  }

  std::vector<std::unique_ptr<TempDir>> dirs_;  // Outlive the tier.
  std::unique_ptr<Tier> tier_;
  const CompressedObject object_ = MakeTestObject({.seed = 1});
  const uint32_t bands_ = static_cast<uint32_t>(object_.manifest->bands.size());
};

// Invariant 1: bands are a prefix that grows by one at the top.
TEST_P(TierConformanceTest, ServesEachBandAsSoonAsItIsPut) {
  ExpectBands(object_, 0);
  for (uint32_t band = 0; band < bands_; ++band) {
    KVTIER_ASSERT_OK(PutBand(object_, band));
    ExpectBands(object_, band + 1);
  }
}

TEST_P(TierConformanceTest, RefusesABandThatIsNotTheNext) {
  EXPECT_THAT(PutBand(object_, 1), StatusIs(absl::StatusCode::kFailedPrecondition));
  KVTIER_ASSERT_OK(PutBand(object_, 0));
  EXPECT_THAT(PutBand(object_, 0), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(PutBand(object_, 2), StatusIs(absl::StatusCode::kFailedPrecondition));
  ExpectBands(object_, 1);
}

TEST_P(TierConformanceTest, RefusesSegmentsThatDoNotFitTheManifest) {
  std::vector<SegmentRef> layers = Layers(object_, 0);
  EXPECT_THAT(tier_->PutBand(*object_.manifest, BandIndex(bands_), layers),
              StatusIs(absl::StatusCode::kInvalidArgument));
  std::swap(layers[0], layers[1]);
  ASSERT_NE(layers[0].bytes().size(), layers[1].bytes().size());
  EXPECT_THAT(tier_->PutBand(*object_.manifest, BandIndex(0), layers),
              StatusIs(absl::StatusCode::kInvalidArgument));
  layers.pop_back();
  EXPECT_THAT(tier_->PutBand(*object_.manifest, BandIndex(0), layers),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ExpectBands(object_, 0);
  EXPECT_EQ(tier_->Usage().bytes, 0u);
}

TEST_P(TierConformanceTest, DropsFromTheTop) {
  PutAll(object_);
  for (uint32_t keep = bands_; keep-- > 0;) {
    KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, keep));
    ExpectBands(object_, keep);
  }
}

TEST_P(TierConformanceTest, DroppingMoreThanIsThereIsFine) {
  KVTIER_EXPECT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
  KVTIER_ASSERT_OK(PutBand(object_, 0));
  KVTIER_EXPECT_OK(tier_->DropBands(object_.manifest->upload_id, 5));
  ExpectBands(object_, 1);
}

TEST_P(TierConformanceTest, TakesDroppedBandsAgain) {
  PutAll(object_);
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 2));
  for (uint32_t band = 2; band < bands_; ++band) KVTIER_ASSERT_OK(PutBand(object_, band));
  ExpectBands(object_, bands_);
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
  PutAll(object_);
  ExpectBands(object_, bands_);
}

TEST_P(TierConformanceTest, KeepsUploadsApart) {
  const CompressedObject recomputed = MakeTestObject({.seed = 1, .upload_seed = 1});
  ASSERT_EQ(recomputed.manifest->key, object_.manifest->key);
  PutAll(object_);
  KVTIER_ASSERT_OK(PutBand(recomputed, 0));
  ExpectBands(object_, bands_);
  ExpectBands(recomputed, 1);
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
  ExpectBands(object_, 0);
  ExpectBands(recomputed, 1);
}

// Invariant 3.
TEST_P(TierConformanceTest, ASegmentOutlivesItsBand) {
  PutAll(object_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef segment, Get(object_, 3, 1));
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
  const SegmentRef& expected = object_.segment(BandIndex(3), LayerIndex(1));
  EXPECT_TRUE(std::ranges::equal(segment.bytes(), expected.bytes()));
}

TEST_P(TierConformanceTest, GivesBackWhatItCharged) {
  PutAll(object_);
  EXPECT_GE(tier_->Usage().bytes, object_.manifest->total_bytes());
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 2));
  EXPECT_GE(tier_->Usage().bytes, object_.manifest->PrefixBytes(2));
  EXPECT_LT(tier_->Usage().bytes, object_.manifest->total_bytes() + 4096 * bands_);
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
  EXPECT_EQ(tier_->Usage().bytes, 0u);
}

TEST_P(TierConformanceTest, RefusesWhatTheBudgetCannotHoldAndKeepsNothingOfIt) {
  PutAll(object_);
  const uint64_t needed = tier_->Usage().bytes;
  Open(needed);
  PutAll(object_);
  const CompressedObject other = MakeTestObject({.seed = 2});
  EXPECT_THAT(PutBand(other, 0), StatusIs(absl::StatusCode::kResourceExhausted,
                                          testing::HasSubstr(std::to_string(needed))));
  ExpectBands(other, 0);
  ExpectBands(object_, bands_);
  EXPECT_EQ(tier_->Usage().bytes, needed);
  KVTIER_ASSERT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
  KVTIER_EXPECT_OK(PutBand(other, 0));
}

// Segments without rows: a context so short that some bands rank nothing in some layers.
TEST_P(TierConformanceTest, TakesEmptySegmentsAndEmptyBands) {
  const CompressedObject tiny = MakeTestObject(
      {.layers = 2, .kv_heads = 1, .system_tokens = 0, .context_tokens = 3, .seed = 5});
  ASSERT_EQ(tiny.manifest->bands[0].encoded_bytes(), 0u);
  PutAll(tiny);
  ExpectBands(tiny, static_cast<uint32_t>(tiny.manifest->bands.size()));
  KVTIER_ASSERT_OK(tier_->DropBands(tiny.manifest->upload_id, 1));
  ExpectBands(tiny, 1);
}

// Longer than a part of the RocksDB tier, and not a multiple of one.
TEST_P(TierConformanceTest, TakesSegmentsOfSeveralMiB) {
  const CompressedObject large = MakeTestObject({.layers = 1,
                                                 .kv_heads = 2,
                                                 .head_dim = 128,
                                                 .context_tokens = 5000,
                                                 .edges = "0.1,1",
                                                 .seed = 6});
  ASSERT_GT(large.manifest->bands[1].encoded_bytes(), 4u << 20);
  PutAll(large);
  ExpectBands(large, 2);
}

TEST_P(TierConformanceTest, AReaderSeesItsBytesOrAMissWhileBandsComeAndGo) {
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int round = 0; round < 20; ++round) {
      PutAll(object_);
      KVTIER_EXPECT_OK(tier_->DropBands(object_.manifest->upload_id, 1));
      KVTIER_EXPECT_OK(tier_->DropBands(object_.manifest->upload_id, 0));
    }
    done = true;
  });
  uint64_t reads = 0;
  while (!done) {
    const uint32_t band = static_cast<uint32_t>(reads++ % bands_);
    const absl::StatusOr<SegmentRef> segment = Get(object_, band, 1);
    if (!segment.ok()) {
      EXPECT_THAT(segment, StatusIs(absl::StatusCode::kNotFound));
      continue;
    }
    const SegmentRef& expected = object_.segment(BandIndex(band), LayerIndex(1));
    EXPECT_TRUE(std::ranges::equal(segment->bytes(), expected.bytes()));
  }
  writer.join();
}

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_TIER_CONFORMANCE_H_
