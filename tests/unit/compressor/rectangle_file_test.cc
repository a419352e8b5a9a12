#include "compressor/rectangle_file.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/rebanding.h"
#include "compressor/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/row_codec.h"
#include "kvcache/segment.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

CompressedObject MakeObject(const std::string& recipe) {
  ObjectShape shape = TinyShape();
  shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
  shape.context_tokens = 40;
  shape.window = 6;
  shape.recipe = recipe;
  return MakeRandomObject(shape);
}

TEST(RectangleFileTest, HasEveryRowOfEveryHeadByPosition) {
  const TempDir dir;
  for (const char* recipe : {"kvzip/1", "kvzip/1;codec=int8"}) {
    SCOPED_TRACE(recipe);
    const CompressedObject object = MakeObject(recipe);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Rebander rebander,
                                Rebander::Create({object.manifest, 2, object.segments}));
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const RebandPlan plan,
        rebander.PlanRectangle(Ratio::FromDouble(0.4).value(), Rectangle::kLayer));
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject rectangle, rebander.Pack(plan));
    const std::string path = dir.File("rows.safetensors");
    KVTIER_ASSERT_OK(WriteRectangleFile(rectangle, path));

    KVTIER_ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(path));
    const Manifest& m = *rectangle.manifest;
    EXPECT_EQ(file->metadata().at("key"), m.key.ToHex());
    EXPECT_EQ(file->metadata().at("recipe"), m.recipe);
    EXPECT_EQ(file->metadata().at("ratio"), "0.4");
    EXPECT_EQ(file->metadata().at("logical_length"), "41");
    EXPECT_EQ(file->entries().size(), 9u);
    for (uint32_t l = 0; l < 3; ++l) {
      const SegmentEntry& entry = m.segment(BandIndex(0), LayerIndex(l));
      const auto tensor = [&](const char* name) {
        return file->entries().at(absl::StrCat("layers.", l, ".", name));
      };
      const int64_t rows = entry.heads[0].rows;
      const bool decoded = entry.codec != CodecId::kRaw;
      EXPECT_EQ(tensor("positions").shape, (std::vector<int64_t>{2, rows}));
      EXPECT_EQ(tensor("keys").shape, (std::vector<int64_t>{2, rows, 4}));
      EXPECT_EQ(tensor("values").dtype, decoded ? "F32" : "BF16");
      for (uint32_t h = 0; h < 2; ++h) {
        KVTIER_ASSERT_OK_AND_ASSIGN(
            const HeadRows head,
            ReadHead(m.geometry, entry, {0, 2},
                     rectangle.segment(BandIndex(0), LayerIndex(l)).bytes(), h));
        KVTIER_ASSERT_OK_AND_ASSIGN(const auto positions, ReadPositions(head));
        for (uint32_t i = 0; i < head.rows; ++i) {
          const uint64_t at = h * static_cast<uint64_t>(rows) + i;
          EXPECT_EQ(std::memcmp(tensor("positions").bytes.data() + 4 * at, &positions[i], 4), 0);
          if (decoded) {
            float expected[4];
            FindRowCodec(entry.codec)
                ->DecodeRow(head.keys + i * EncodedRowBytes(m.geometry, entry.codec),
                            head.key_scales + i * EncodedScaleBytes(entry.codec), expected);
            EXPECT_EQ(std::memcmp(tensor("keys").bytes.data() + 16 * at, expected, 16), 0);
          } else {
            EXPECT_EQ(std::memcmp(tensor("keys").bytes.data() + 8 * at, head.keys + 8 * i, 8), 0);
            EXPECT_EQ(std::memcmp(tensor("values").bytes.data() + 8 * at, head.values + 8 * i, 8),
                      0);
          }
        }
      }
    }
  }
}

TEST(RectangleFileTest, RefusesRaggedHeads) {
  const TempDir dir;
  CompressedObject object = MakeObject("kvzip/1");
  // Band 0 alone, as if it were all: its heads differ in what they keep.
  Manifest part = *object.manifest;
  part.bands.resize(1);
  object.manifest = std::make_shared<const Manifest>(part);
  object.segments.resize(3);
  EXPECT_THAT(WriteRectangleFile(object, dir.File("x")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no rectangle: layer 0")));
}

}  // namespace
}  // namespace kvtier
