#include "kvcache/geometry.h"

#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

// Llama-3.1-8B.
Geometry Llama8B() {
  Geometry geometry;
  geometry.kv_heads = 8;
  geometry.head_dim = 128;
  geometry.dtype = DType::kBf16;
  geometry.layers.assign(32, LayerKind::kGlobal);
  return geometry;
}

TEST(GeometryTest, CountsBytesAndPairs) {
  const Geometry geometry = Llama8B();
  KVTIER_EXPECT_OK(geometry.Validate());
  EXPECT_EQ(geometry.row_bytes(), 256u);
  EXPECT_EQ(geometry.dense_token_bytes(), 131072u);
  EXPECT_EQ(geometry.scored_pairs(1000), 32u * 8 * 1000);
}

TEST(GeometryTest, SlidingLayersAreNotScored) {
  Geometry geometry = Llama8B();
  geometry.layers[1] = geometry.layers[3] = LayerKind::kSliding;
  EXPECT_EQ(geometry.scored_layer_count(), 30u);
  EXPECT_EQ(geometry.scored_pairs(10), 30u * 8 * 10);
  EXPECT_EQ(geometry.dense_token_bytes(), 131072u);
}

TEST(GeometryTest, DTypesHaveNamesAndSizes) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    EXPECT_THAT(DTypeFromName(DTypeName(dtype)), IsOkAndHolds(dtype));
    EXPECT_THAT(DTypeFromByte(static_cast<uint8_t>(dtype)), IsOkAndHolds(dtype));
    EXPECT_EQ(DTypeBytes(dtype), dtype == DType::kF32 ? 4u : 2u);
  }
  EXPECT_THAT(DTypeFromName("int8"), StatusIs(absl::StatusCode::kInvalidArgument));
  for (int byte : {0, 4, 255}) {
    EXPECT_THAT(DTypeFromByte(static_cast<uint8_t>(byte)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST(GeometryTest, RefusesWhatBreaksALimitAndNamesIt) {
  const auto refuses = [](const char* name, auto change) {
    Geometry geometry = Llama8B();
    change(geometry);
    EXPECT_THAT(geometry.Validate(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(name)));
  };
  refuses("kv_heads", [](Geometry& g) { g.kv_heads = 0; });
  refuses("kKvHeadsMax", [](Geometry& g) { g.kv_heads = limits::kKvHeadsMax + 1; });
  refuses("head_dim", [](Geometry& g) { g.head_dim = 0; });
  refuses("kHeadDimMax", [](Geometry& g) { g.head_dim = 0xFFFFFFFF; });
  refuses("layers", [](Geometry& g) { g.layers.clear(); });
  refuses("kLayersMax",
          [](Geometry& g) { g.layers.resize(limits::kLayersMax + 1, LayerKind::kGlobal); });
  refuses("dtype", [](Geometry& g) { g.dtype = static_cast<DType>(9); });
  refuses("layer 7", [](Geometry& g) { g.layers[7] = static_cast<LayerKind>(0); });
}

}  // namespace
}  // namespace kvtier
