#include "kvcache/ragged_view.h"

#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

ObjectShape MixedShape() {
  ObjectShape shape = TinyShape();
  shape.geometry.kv_heads = 4;
  shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
  shape.system_tokens = 2;
  shape.context_tokens = 50;
  shape.window = 9;
  shape.edges = BandEdges::Default();
  return shape;
}

// Bands 0..band_count-1 of `heads`, each segment in memory of its own as after a fetch.
std::vector<SegmentRef> Segments(const CompressedObject& object, uint32_t band_count,
                                 HeadRange heads) {
  std::vector<SegmentRef> segments;
  for (uint32_t b = 0; b < band_count; ++b) {
    for (uint32_t l = 0; l < object.manifest->geometry.layer_count(); ++l) {
      const auto at = object.manifest->segment(BandIndex(b), LayerIndex(l)).HeadBytes(heads);
      segments.push_back(
          SegmentRef::Own(AlignedBytes::Copy(object.segment(BandIndex(b), LayerIndex(l))
                                                 .bytes()
                                                 .subspan(at.begin, at.end - at.begin))));
    }
  }
  return segments;
}

TEST(RaggedCacheTest, AllBandsHoldEveryPositionOnce) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto cache,
                              RaggedCache::Create(object.manifest, 6, {0, 4}, object.segments));
  EXPECT_EQ(cache->ratio(), Ratio());
  EXPECT_EQ(cache->bytes(), object.manifest->total_bytes());
  for (uint32_t layer : {0u, 2u}) {
    for (uint32_t head = 0; head < 4; ++head) {
      std::set<uint32_t> positions;
      for (const RowSpan& span : cache->spans(LayerIndex(layer), head)) {
        EXPECT_GT(span.rows, 0u);
        for (uint32_t i = 0; i < span.rows; ++i) {
          EXPECT_TRUE(positions.insert(span.positions[i]).second);
        }
      }
      EXPECT_EQ(positions.size(), 52u);
      EXPECT_EQ(*positions.rbegin(), 51u);
      EXPECT_EQ(cache->rows(LayerIndex(layer), head), 52u);
    }
  }
  EXPECT_EQ(cache->rows(LayerIndex(1), 3), 9u);
  EXPECT_EQ(cache->spans(LayerIndex(1), 3).size(), 1u);
}

TEST(RaggedCacheTest, APrefixOfBandsKeepsExactlyItsRatio) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  const uint64_t pairs = object.manifest->scored_pairs();
  for (uint32_t bands = 1; bands <= 6; ++bands) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const auto cache,
        RaggedCache::Create(object.manifest, bands, {0, 4}, Segments(object, bands, {0, 4})));
    EXPECT_EQ(cache->bytes(), object.manifest->PrefixBytes(bands));
    EXPECT_EQ(cache->band_count(), bands);
    uint64_t kept = 0;
    for (uint32_t layer : {0u, 2u}) {
      for (uint32_t head = 0; head < 4; ++head) kept += cache->rows(LayerIndex(layer), head) - 2;
    }
    EXPECT_EQ(kept, cache->ratio().Of(pairs));
  }
}

TEST(RaggedCacheTest, ARangeOfHeadsSeesTheSameRowsAsTheWhole) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto whole,
                              RaggedCache::Create(object.manifest, 6, {0, 4}, object.segments));
  for (HeadRange heads : {HeadRange{0, 2}, HeadRange{2, 4}, HeadRange{3, 4}}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto part, RaggedCache::Create(object.manifest, 6, heads,
                                                                     Segments(object, 6, heads)));
    EXPECT_EQ(part->heads(), heads);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t head = heads.begin; head < heads.end; ++head) {
        const auto a = whole->spans(LayerIndex(layer), head);
        const auto b = part->spans(LayerIndex(layer), head);
        ASSERT_EQ(a.size(), b.size());
        for (size_t i = 0; i < a.size(); ++i) {
          ASSERT_EQ(a[i].rows, b[i].rows);
          const size_t bytes = a[i].rows * whole->geometry().row_bytes();
          EXPECT_EQ(std::memcmp(a[i].keys, b[i].keys, bytes), 0);
          EXPECT_EQ(std::memcmp(a[i].values, b[i].values, bytes), 0);
          EXPECT_EQ(std::memcmp(a[i].positions, b[i].positions, a[i].rows * 4), 0);
        }
      }
    }
  }
}

TEST(RaggedCacheTest, PinsItsSegments) {
  CompressedObject object = MakeRandomObject(MixedShape());
  std::vector<std::weak_ptr<const void>> owners;
  for (const SegmentRef& segment : object.segments) owners.emplace_back(segment.owner());
  KVTIER_ASSERT_OK_AND_ASSIGN(auto cache, RaggedCache::Create(object.manifest, 6, {0, 4},
                                                              std::exchange(object.segments, {})));
  for (const auto& owner : owners) EXPECT_FALSE(owner.expired());
  cache.reset();
  for (const auto& owner : owners) EXPECT_TRUE(owner.expired());
}

TEST(RaggedCacheTest, RefusesWhatDoesNotFitTheManifest) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  const auto refused = [](const char* message) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message));
  };
  const auto& m = object.manifest;
  EXPECT_THAT(RaggedCache::Create(nullptr, 6, {0, 4}, object.segments), refused("no manifest"));
  EXPECT_THAT(RaggedCache::Create(m, 0, {0, 4}, {}), refused("0 bands"));
  EXPECT_THAT(RaggedCache::Create(m, 7, {0, 4}, object.segments), refused("7 bands"));
  EXPECT_THAT(RaggedCache::Create(m, 6, {2, 2}, object.segments), refused("heads"));
  EXPECT_THAT(RaggedCache::Create(m, 6, {0, 5}, object.segments), refused("heads"));
  EXPECT_THAT(RaggedCache::Create(m, 5, {0, 4}, object.segments), refused("expected 15"));
  EXPECT_THAT(RaggedCache::Create(m, 6, {0, 2}, object.segments), refused("bytes"));
  std::vector<SegmentRef> swapped = object.segments;
  std::swap(swapped[0], swapped[15]);
  EXPECT_THAT(RaggedCache::Create(m, 6, {0, 4}, swapped), refused("bytes"));
  std::vector<SegmentRef> unaligned = object.segments;
  const AlignedBytes shifted = AlignedBytes::Allocate(unaligned[0].bytes().size() + 4);
  unaligned[0] = SegmentRef(nullptr, shifted.span().subspan(4));
  EXPECT_THAT(RaggedCache::Create(m, 6, {0, 4}, unaligned), refused("not aligned"));
}

TEST(RaggedCacheDeathTest, SpansRequireAHeadOfTheRange) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto cache, RaggedCache::Create(object.manifest, 1, {1, 3},
                                                                    Segments(object, 1, {1, 3})));
  EXPECT_EQ(cache->rows(LayerIndex(1), 1), 9u);
  EXPECT_DEATH(cache->spans(LayerIndex(0), 0), "CHECK");
  EXPECT_DEATH(cache->spans(LayerIndex(0), 3), "CHECK");
  EXPECT_DEATH(cache->spans(LayerIndex(3), 1), "CHECK");
}

}  // namespace
}  // namespace kvtier
