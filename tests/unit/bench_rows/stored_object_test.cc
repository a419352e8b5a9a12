#include "bench/stored_object.h"

#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "kvcache/segment.h"

namespace kvtier::bench {
namespace {

TEST(StoredObjectTest, IsValidDownToItsLastByte) {
  for (const std::vector<double>& edges :
       {std::vector<double>{1.0}, {0.1, 0.2, 0.3}, {0.1, 0.2, 0.3, 0.4, 0.6, 1.0}}) {
    const ObjectShape shape = {
        .layers = 3, .kv_heads = 2, .head_dim = 8, .tokens = 101, .edges = edges};
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object, MakeStoredObject(shape, 7));
    KVTIER_EXPECT_OK(object.manifest->Validate());
    for (uint32_t band = 0; band < edges.size(); ++band) {
      for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        KVTIER_EXPECT_OK(
            VerifySegmentContent(*object.manifest, BandIndex(band), LayerIndex(layer),
                                 object.segment(BandIndex(band), LayerIndex(layer)).bytes()))
            << band << " " << layer;
      }
    }
  }
}

TEST(StoredObjectTest, SeedsMakeOtherKeysAndOtherBytes) {
  const ObjectShape shape = FlatShape(1 << 20, 1 << 19);
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject a, MakeStoredObject(shape, 1));
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject b, MakeStoredObject(shape, 2));
  EXPECT_NE(a.manifest->key, b.manifest->key);
  EXPECT_NE(a.manifest->bands[0].layers[0].heads[0].crc32c,
            b.manifest->bands[0].layers[0].heads[0].crc32c);
  const CompressedObject renamed = Renamed(a, 2);
  EXPECT_EQ(renamed.manifest->key, b.manifest->key);
  EXPECT_NE(renamed.manifest->upload_id, a.manifest->upload_id);
  EXPECT_EQ(renamed.manifest->bands, a.manifest->bands);
}

}  // namespace
}  // namespace kvtier::bench
