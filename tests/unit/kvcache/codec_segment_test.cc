// Segments of the lossy codecs: what is written reads back, and hostile bytes are noticed.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/position_code.h"
#include "kvcache/ragged_view.h"
#include "kvcache/row_codec.h"
#include "kvcache/segment.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

class CodecSegmentTest : public ::testing::TestWithParam<CodecId> {
 protected:
  ObjectShape Shape(uint32_t head_dim = 9) const {
    ObjectShape shape;
    shape.geometry.kv_heads = 3;
    shape.geometry.head_dim = head_dim;
    shape.geometry.dtype = DType::kBf16;
    shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
    shape.system_tokens = 3;
    shape.context_tokens = 300;
    shape.window = 17;
    shape.recipe = absl::StrCat("kvzip/1;codec=", CodecName(GetParam()));
    return shape;
  }
};

TEST_P(CodecSegmentTest, ArraysAreAlignedAndFollowEachOther) {
  for (const uint32_t head_dim : {1u, 9u, 128u}) {
    Geometry geometry = Shape(head_dim).geometry;
    for (const uint32_t rows : {1u, 2u, 63u, 64u, 65u, 1000u}) {
      for (const uint64_t position_bytes : {uint64_t{rows}, uint64_t{rows} * 2}) {
        const HeadBlockLayout at = LayOutHeadBlock(geometry, GetParam(), rows, position_bytes);
        const uint64_t row_bytes = rows * EncodedRowBytes(geometry, GetParam());
        const uint64_t scale_bytes = rows * EncodedScaleBytes(GetParam());
        EXPECT_EQ(at.keys, 0u);
        EXPECT_GE(at.values, at.keys + row_bytes);
        EXPECT_GE(at.key_scales, at.values + row_bytes);
        EXPECT_GE(at.value_scales, at.key_scales + scale_bytes);
        EXPECT_GE(at.log_scores, at.value_scales + scale_bytes);
        EXPECT_GE(at.positions, at.log_scores + 2 * rows);
        EXPECT_GE(at.bytes, at.positions + position_bytes);
        EXPECT_LT(at.bytes,
                  2 * (row_bytes + scale_bytes + rows) + position_bytes + 6 * kSegmentAlignment);
        for (const uint64_t offset :
             {at.values, at.key_scales, at.value_scales, at.log_scores, at.positions, at.bytes}) {
          EXPECT_EQ(offset % kSegmentAlignment, 0u);
        }
      }
    }
    EXPECT_EQ(LayOutHeadBlock(geometry, GetParam(), 0, 0).bytes, 0u);
  }
}

TEST_P(CodecSegmentTest, StoredSizesMustFitTheRows) {
  const Geometry geometry = Shape(128).geometry;
  const uint64_t least = LayOutHeadBlock(geometry, GetParam(), 100, 100).bytes;
  const uint64_t most = LayOutHeadBlock(geometry, GetParam(), 100, 300).bytes;
  for (uint64_t bytes = least; bytes <= most; bytes += kSegmentAlignment) {
    KVTIER_EXPECT_OK(LayOutStoredBlock(geometry, GetParam(), 100, bytes).status());
  }
  for (const uint64_t bytes : {uint64_t{0}, least - 64, least + 1, most + 64, ~uint64_t{63}}) {
    EXPECT_THAT(LayOutStoredBlock(geometry, GetParam(), 100, bytes).status(),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("encoded_bytes")));
  }
  EXPECT_THAT(LayOutStoredBlock(geometry, GetParam(), 0, 64).status(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  KVTIER_EXPECT_OK(LayOutStoredBlock(geometry, GetParam(), 0, 0).status());
}

TEST_P(CodecSegmentTest, HeadsReadBackAsWritten) {
  const Geometry geometry = Shape(20).geometry;
  const std::vector<uint32_t> counts = {70, 0, 3};
  const RowCodec& codec = *FindRowCodec(GetParam());
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentBuilder builder,
                              SegmentBuilder::Create(geometry, GetParam(), counts));
  std::vector<std::vector<bfloat16>> keys(3);
  for (uint32_t head : {0u, 2u}) {
    const HeadRowsMut out = builder.head(head);
    for (uint32_t i = 0; i < counts[head]; ++i) {
      out.positions[i] = 300 * i + head;  // Two bytes of position code each.
      out.log_scores[i] = float16(-static_cast<float>(i));
      for (uint32_t d = 0; d < 20; ++d) {
        keys[head].push_back(bfloat16(static_cast<float>((i * 7 + d * 3 + head) % 11) - 4));
      }
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(keys[head].data());
    KVTIER_ASSERT_OK(EncodeHeadRows(geometry, GetParam(), counts[head], bytes, bytes, out));
  }
  const SegmentBuilder::Sealed sealed = std::move(builder).Seal();
  EXPECT_EQ(sealed.entry.codec, GetParam());
  EXPECT_EQ(sealed.entry.encoded_bytes(), sealed.bytes.size());
  EXPECT_EQ(sealed.entry.heads[1], HeadEntry());
  KVTIER_EXPECT_OK(VerifySegment(sealed.entry, {0, 3}, sealed.bytes.span()));
  for (uint32_t head = 0; head < 3; ++head) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const HeadRows in, ReadHead(geometry, sealed.entry, {0, 3}, sealed.bytes.span(), head));
    ASSERT_EQ(in.rows, counts[head]);
    EXPECT_TRUE(in.positions.empty());
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> positions, ReadPositions(in));
    ASSERT_EQ(positions.size(), counts[head]);
    for (uint32_t i = 0; i < in.rows; ++i) {
      EXPECT_EQ(positions[i], 300 * i + head);
      EXPECT_EQ(static_cast<float>(in.log_scores[i]), -static_cast<float>(i));
      std::vector<float> key(20);
      std::vector<float> value(20);
      codec.DecodeRow(in.keys + i * EncodedRowBytes(geometry, GetParam()),
                      in.key_scales + i * EncodedScaleBytes(GetParam()), key);
      codec.DecodeRow(in.values + i * EncodedRowBytes(geometry, GetParam()),
                      in.value_scales + i * EncodedScaleBytes(GetParam()), value);
      EXPECT_EQ(key, value);
      for (uint32_t d = 0; d < 20; ++d) {
        EXPECT_NEAR(key[d], static_cast<float>(keys[head][i * 20 + d]), codec.ErrorBound(-4, 6));
      }
    }
  }
}

TEST_P(CodecSegmentTest, ARowThatCannotBeEncodedIsNamed) {
  const Geometry geometry = Shape(4).geometry;
  const std::vector<uint32_t> counts = {2, 0, 0};
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentBuilder builder,
                              SegmentBuilder::Create(geometry, GetParam(), counts));
  std::vector<bfloat16> good(8, bfloat16(1));
  std::vector<bfloat16> bad = good;
  bad[6] = bfloat16(std::numeric_limits<float>::infinity());
  const auto* good_bytes = reinterpret_cast<const std::byte*>(good.data());
  const auto* bad_bytes = reinterpret_cast<const std::byte*>(bad.data());
  EXPECT_THAT(
      EncodeHeadRows(geometry, GetParam(), 2, good_bytes, bad_bytes, builder.head(0)),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("values: row 1: element 2 is inf")));
  EXPECT_THAT(EncodeHeadRows(geometry, GetParam(), 2, bad_bytes, good_bytes, builder.head(0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("keys: row 1")));
}

TEST_P(CodecSegmentTest, ObjectsPassEveryCheckAndTheirManifestsRoundTrip) {
  for (const uint32_t head_dim : {1u, 9u, 64u}) {
    const CompressedObject object = MakeRandomObject(Shape(head_dim));
    const Manifest& m = *object.manifest;
    const std::string encoded = EncodeManifest(m);
    EXPECT_THAT(DecodeManifest(AsBytes(encoded)), IsOkAndHolds(m));
    for (uint32_t band = 0; band < m.bands.size(); ++band) {
      for (uint32_t layer = 0; layer < 3; ++layer) {
        const auto bytes = object.segment(BandIndex(band), LayerIndex(layer)).bytes();
        KVTIER_EXPECT_OK(VerifySegmentContent(m, BandIndex(band), LayerIndex(layer), bytes));
      }
    }
  }
}

TEST_P(CodecSegmentTest, TheRaggedCacheHasSpansAsStoredAndDecodesPositionsOnDemand) {
  const CompressedObject object = MakeRandomObject(Shape());
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto cache, RaggedCache::Create(object.manifest, 6, {1, 3}, [&] {
        std::vector<SegmentRef> parts;
        for (uint32_t b = 0; b < 6; ++b) {
          for (uint32_t l = 0; l < 3; ++l) {
            const auto& entry = object.manifest->segment(BandIndex(b), LayerIndex(l));
            const auto at = entry.HeadBytes({1, 3});
            parts.push_back(
                SegmentRef::Own(AlignedBytes::Copy(object.segment(BandIndex(b), LayerIndex(l))
                                                       .bytes()
                                                       .subspan(at.begin, at.end - at.begin))));
          }
        }
        return parts;
      }()));
  for (uint32_t head : {1u, 2u}) {
    for (const RowSpan& span : cache->spans(LayerIndex(0), head)) {
      EXPECT_EQ(span.codec, GetParam());
      EXPECT_EQ(span.positions, nullptr);
      EXPECT_NE(span.key_scales, nullptr);
      EXPECT_NE(span.value_scales, nullptr);
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(std::vector<uint32_t> all, cache->Positions(LayerIndex(0), head));
    std::sort(all.begin(), all.end());
    ASSERT_EQ(all.size(), 303u);
    for (uint32_t p = 0; p < 303; ++p) EXPECT_EQ(all[p], p);
    const auto window = cache->spans(LayerIndex(1), head);
    ASSERT_EQ(window.size(), 1u);
    ASSERT_EQ(window[0].rows, 17u);
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> last,
                                cache->Positions(LayerIndex(1), head));
    ASSERT_EQ(last.size(), 17u);
    for (uint32_t i = 0; i < 17; ++i) EXPECT_EQ(last[i], 303 - 17 + i);
  }
}

// Damages the block of one head, makes its checksum right again, and expects the content check to
// notice.
template <typename Damage>
void ExpectNoticed(const CompressedObject& object, uint32_t band, uint32_t layer,
                   const char* message, Damage damage) {
  Manifest m = *object.manifest;
  AlignedBytes bytes =
      AlignedBytes::Copy(object.segment(BandIndex(band), LayerIndex(layer)).bytes());
  SegmentEntry& entry = m.bands[band].layers[layer];
  HeadEntry& head = entry.heads[0];
  ASSERT_GE(head.rows, 2u);
  const HeadBlockLayout at =
      LayOutStoredBlock(m.geometry, entry.codec, head.rows, head.encoded_bytes).value();
  damage(bytes.data(), at, head.rows);
  head.crc32c = ComputeCrc32c(std::as_const(bytes).span().first(head.encoded_bytes));
  EXPECT_THAT(VerifySegmentContent(m, BandIndex(band), LayerIndex(layer), bytes.span()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr(message)))
      << message;
}

TEST_P(CodecSegmentTest, WrongContentUnderARightChecksumIsNoticed) {
  const CompressedObject object = MakeRandomObject(Shape());
  const auto noticed = [&](uint32_t band, uint32_t layer, const char* message, auto damage) {
    ExpectNoticed(object, band, layer, message, damage);
  };
  using At = const HeadBlockLayout&;
  const uint64_t row_bytes = EncodedRowBytes(object.manifest->geometry, GetParam());
  const uint64_t scale_bytes = EncodedScaleBytes(GetParam());
  noticed(0, 0, "head 0: padding", [=](std::byte* b, At at, uint32_t rows) {
    b[at.keys + rows * row_bytes] = std::byte{1};
  });
  noticed(0, 0, "head 0: padding", [=](std::byte* b, At at, uint32_t rows) {
    b[at.value_scales + rows * scale_bytes] = std::byte{1};
  });
  noticed(0, 0, "head 0: row 1 key: scale is", [=](std::byte* b, At at, uint32_t) {
    StoreLittleEndian<uint16_t>(0x7C00, b + at.key_scales + scale_bytes);
  });
  noticed(5, 2, "head 0: row 0 value: scale is", [=](std::byte* b, At at, uint32_t) {
    StoreLittleEndian<uint16_t>(0xFE00, b + at.value_scales);
  });
  noticed(0, 0, "position code", [](std::byte* b, At at, uint32_t) {
    b[at.positions + 1] = std::byte{0xFF};
    b[at.positions + 2] = std::byte{0xFF};
    b[at.positions + 3] = std::byte{0xFF};
  });
  noticed(0, 0, "position code: bytes follow",
          [](std::byte* b, At at, uint32_t) { b[at.bytes - 1] = std::byte{1}; });
  noticed(0, 0, "protected position",
          [](std::byte* b, At at, uint32_t) { b[at.positions] = std::byte{1}; });
  noticed(0, 1, "not of the window",
          [](std::byte* b, At at, uint32_t) { b[at.positions + 1] = std::byte{1}; });
  noticed(5, 0, "log score", [](std::byte* b, At at, uint32_t) {
    StoreLittleEndian<uint16_t>(0x7E00, b + at.log_scores);
  });
}

INSTANTIATE_TEST_SUITE_P(Lossy, CodecSegmentTest, ::testing::Values(CodecId::kInt8, CodecId::kInt4),
                         [](const auto& test) { return std::string(CodecName(test.param)); });

}  // namespace
}  // namespace kvtier
