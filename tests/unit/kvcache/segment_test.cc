#include "kvcache/segment.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

Geometry SmallGeometry(uint32_t kv_heads = 4) {
  Geometry geometry;
  geometry.kv_heads = kv_heads;
  geometry.head_dim = 24;
  geometry.dtype = DType::kF16;
  geometry.layers = {LayerKind::kGlobal};
  return geometry;
}

ObjectShape MixedShape() {
  ObjectShape shape;
  shape.geometry = SmallGeometry(8);
  shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
  shape.system_tokens = 3;
  shape.context_tokens = 60;
  shape.window = 17;
  return shape;
}

TEST(SegmentTest, ArraysAreAlignedAndDoNotOverlap) {
  for (uint32_t head_dim : {1u, 4u, 24u, 128u}) {
    Geometry geometry = SmallGeometry();
    geometry.head_dim = head_dim;
    for (uint32_t rows = 1; rows < 200; ++rows) {
      const HeadBlockLayout at = LayOutHeadBlock(geometry, rows);
      EXPECT_EQ(at.positions, 0u);
      EXPECT_GE(at.log_scores, rows * 4u);
      EXPECT_GE(at.keys, at.log_scores + rows * 2u);
      EXPECT_GE(at.values, at.keys + rows * geometry.row_bytes());
      EXPECT_GE(at.bytes, at.values + rows * geometry.row_bytes());
      EXPECT_LT(at.bytes, rows * (6 + 2 * geometry.row_bytes()) + 4 * kSegmentAlignment);
      for (uint64_t offset : {at.log_scores, at.keys, at.values, at.bytes}) {
        EXPECT_EQ(offset % kSegmentAlignment, 0u);
      }
    }
  }
  EXPECT_EQ(LayOutHeadBlock(SmallGeometry(), 0).bytes, 0u);
  // The largest claim of a manifest that has not been validated yet does not overflow.
  Geometry largest = SmallGeometry();
  largest.head_dim = limits::kHeadDimMax;
  largest.dtype = DType::kF32;
  EXPECT_GT(LayOutHeadBlock(largest, 0xFFFFFFFF).bytes, uint64_t{1} << 43);
}

TEST(SegmentTest, HeadsReadBackAsWritten) {
  const Geometry geometry = SmallGeometry();
  const std::vector<uint32_t> rows = {3, 0, 1, 70};
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentBuilder builder, SegmentBuilder::Create(geometry, rows));
  for (uint32_t head = 0; head < 4; ++head) {
    const HeadRowsMut out = builder.head(head);
    ASSERT_EQ(out.positions.size(), rows[head]);
    for (uint32_t i = 0; i < rows[head]; ++i) {
      out.positions[i] = 100 * head + i;
      out.log_scores[i] = float16(-static_cast<float>(i));
      std::memset(out.keys + i * geometry.row_bytes(), static_cast<int>(head + i), 48);
      std::memset(out.values + i * geometry.row_bytes(), static_cast<int>(128 + i), 48);
    }
  }
  const SegmentBuilder::Sealed sealed = std::move(builder).Seal();
  EXPECT_EQ(sealed.entry.rows(), 74u);
  EXPECT_EQ(sealed.entry.encoded_bytes(), sealed.bytes.size());
  EXPECT_EQ(sealed.entry.heads[1], HeadEntry());
  KVTIER_EXPECT_OK(VerifySegment(sealed.entry, {0, 4}, sealed.bytes.span()));
  for (uint32_t head = 0; head < 4; ++head) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const HeadRows in, ReadHead(geometry, sealed.entry, {0, 4}, sealed.bytes.span(), head));
    ASSERT_EQ(in.rows, rows[head]);
    for (uint32_t i = 0; i < in.rows; ++i) {
      EXPECT_EQ(in.positions[i], 100 * head + i);
      EXPECT_EQ(static_cast<float>(in.log_scores[i]), -static_cast<float>(i));
      EXPECT_EQ(std::to_integer<uint32_t>(in.keys[i * 48 + 47]), head + i);
      EXPECT_EQ(std::to_integer<uint32_t>(in.values[i * 48]), 128 + i);
    }
  }
}

TEST(SegmentTest, BuilderRefusesWhatDoesNotFit) {
  const Geometry geometry = SmallGeometry();
  EXPECT_THAT(SegmentBuilder::Create(geometry, std::vector<uint32_t>{1, 2}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 heads")));
  EXPECT_THAT(SegmentBuilder::Create(Geometry(), {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SegmentBuilder::Create(geometry, std::vector<uint32_t>(4, 0xFFFFFFFF)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kSegmentBytesMax")));
}

TEST(SegmentTest, ASegmentOfNoRowsIsEmpty) {
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentBuilder builder,
                              SegmentBuilder::Create(SmallGeometry(), std::vector<uint32_t>(4, 0)));
  EXPECT_TRUE(builder.head(2).positions.empty());
  const SegmentBuilder::Sealed sealed = std::move(builder).Seal();
  EXPECT_TRUE(sealed.bytes.empty());
  KVTIER_EXPECT_OK(VerifySegment(sealed.entry, {0, 4}, {}));
  KVTIER_ASSERT_OK_AND_ASSIGN(const HeadRows rows,
                              ReadHead(SmallGeometry(), sealed.entry, {0, 4}, {}, 3));
  EXPECT_EQ(rows.rows, 0u);
}

TEST(SegmentTest, HeadRangesConcatenateToTheWholeAndReadTheSame) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  const Geometry& geometry = object.manifest->geometry;
  for (uint32_t band = 0; band < object.manifest->bands.size(); ++band) {
    const SegmentEntry& entry = object.manifest->segment(BandIndex(band), LayerIndex(0));
    const auto whole = object.segment(BandIndex(band), LayerIndex(0)).bytes();
    for (uint32_t parts : {1u, 2u, 4u, 8u}) {
      std::vector<std::byte> joined;
      for (uint32_t part = 0; part < parts; ++part) {
        const HeadRange range{part * 8 / parts, (part + 1) * 8 / parts};
        const auto at = entry.HeadBytes(range);
        const auto piece = whole.subspan(at.begin, at.end - at.begin);
        KVTIER_EXPECT_OK(VerifySegment(entry, range, piece));
        for (uint32_t head = range.begin; head < range.end; ++head) {
          KVTIER_ASSERT_OK_AND_ASSIGN(const HeadRows from_whole,
                                      ReadHead(geometry, entry, {0, 8}, whole, head));
          KVTIER_ASSERT_OK_AND_ASSIGN(const HeadRows from_piece,
                                      ReadHead(geometry, entry, range, piece, head));
          EXPECT_EQ(from_piece.rows, from_whole.rows);
          EXPECT_EQ(from_piece.keys, from_whole.keys);
          EXPECT_EQ(from_piece.values, from_whole.values);
          EXPECT_EQ(from_piece.positions.data(), from_whole.positions.data());
        }
        joined.insert(joined.end(), piece.begin(), piece.end());
      }
      EXPECT_TRUE(std::equal(joined.begin(), joined.end(), whole.begin(), whole.end()));
    }
  }
}

TEST(SegmentTest, AFlippedByteAnywhereNamesItsHead) {
  const CompressedObject object = MakeRandomObject(TinyShape());
  for (uint32_t band = 0; band < 2; ++band) {
    const SegmentEntry& entry = object.manifest->segment(BandIndex(band), LayerIndex(1));
    AlignedBytes bytes = AlignedBytes::Copy(object.segment(BandIndex(band), LayerIndex(1)).bytes());
    for (size_t at = 0; at < bytes.size(); ++at) {
      const uint32_t head = at < entry.heads[0].encoded_bytes ? 0 : 1;
      bytes.span()[at] ^= std::byte{0x10};
      ASSERT_THAT(
          VerifySegment(entry, {0, 2}, bytes.span()),
          StatusIs(absl::StatusCode::kDataLoss, HasSubstr(absl::StrCat("of head ", head, " "))))
          << at;
      bytes.span()[at] ^= std::byte{0x10};
    }
    KVTIER_EXPECT_OK(VerifySegment(entry, {0, 2}, bytes.span()));
  }
}

TEST(SegmentTest, WrongSizesAndRangesAreRefused) {
  const CompressedObject object = MakeRandomObject(TinyShape());
  const Geometry& geometry = object.manifest->geometry;
  const SegmentEntry& entry = object.manifest->segment(BandIndex(0), LayerIndex(0));
  const auto whole = object.segment(BandIndex(0), LayerIndex(0)).bytes();
  const std::vector<std::byte> longer(whole.size() + 1);
  EXPECT_THAT(VerifySegment(entry, {0, 2}, whole.first(whole.size() - 1)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("truncated in head 1")));
  EXPECT_THAT(VerifySegment(entry, {0, 1}, whole),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("after the last head")));
  EXPECT_THAT(VerifySegment(entry, {0, 3}, whole), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(VerifySegment(entry, {1, 0}, {}), StatusIs(absl::StatusCode::kOutOfRange));
  KVTIER_EXPECT_OK(VerifySegment(entry, {1, 1}, {}));

  EXPECT_THAT(ReadHead(geometry, entry, {0, 2}, whole.first(64), 0),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ReadHead(geometry, entry, {0, 2}, longer, 0),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ReadHead(geometry, entry, {0, 3}, whole, 0), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(ReadHead(geometry, entry, {0, 2}, whole, 2), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(ReadHead(geometry, entry, {1, 2}, whole.subspan(whole.size() / 2), 0),
              StatusIs(absl::StatusCode::kOutOfRange));
  SegmentEntry overlapping = entry;
  overlapping.heads[0].encoded_bytes -= 64;
  EXPECT_THAT(ReadHead(geometry, overlapping, {0, 2}, whole, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head 0")));
  SegmentEntry huge = entry;
  huge.heads[0].encoded_bytes = ~uint64_t{0};
  EXPECT_THAT(VerifySegment(huge, {0, 2}, whole), StatusIs(absl::StatusCode::kDataLoss));
  SegmentEntry unknown = entry;
  unknown.codec = static_cast<CodecId>(9);
  EXPECT_THAT(ReadHead(geometry, unknown, {0, 2}, whole, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("codec 9")));
  const std::vector<std::byte> unaligned(whole.size() + 1);
  EXPECT_THAT(ReadHead(geometry, entry, {0, 2}, std::span(unaligned).subspan(1), 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("aligned")));
}

TEST(SegmentContentTest, EverySegmentOfAValidObjectPasses) {
  for (uint64_t system_tokens : {0u, 3u}) {
    for (const char* recipe : {"kvzip/1", "kvpress/1", "uniform/1"}) {
      ObjectShape shape = MixedShape();
      shape.system_tokens = system_tokens;
      shape.recipe = recipe;
      const CompressedObject object = MakeRandomObject(shape);
      for (uint32_t band = 0; band < shape.edges.size(); ++band) {
        for (uint32_t layer = 0; layer < 3; ++layer) {
          KVTIER_EXPECT_OK(
              VerifySegmentContent(*object.manifest, BandIndex(band), LayerIndex(layer),
                                   object.segment(BandIndex(band), LayerIndex(layer)).bytes()));
        }
      }
    }
  }
}

// Damages the rows of one head, makes its checksum right again, and expects the content check to
// notice.
template <typename Damage>
void ExpectNoticed(const char* message, uint32_t band, uint32_t layer, Damage damage) {
  const CompressedObject object = MakeRandomObject(MixedShape());
  Manifest m = *object.manifest;
  AlignedBytes bytes =
      AlignedBytes::Copy(object.segment(BandIndex(band), LayerIndex(layer)).bytes());
  HeadEntry& head = m.bands[band].layers[layer].heads[0];
  ASSERT_GE(head.rows, 2u);
  const HeadBlockLayout at = LayOutHeadBlock(m.geometry, head.rows);
  damage(reinterpret_cast<uint32_t*>(bytes.data() + at.positions),
         reinterpret_cast<float16*>(bytes.data() + at.log_scores), bytes.data(), head.rows);
  head.crc32c = ComputeCrc32c(std::as_const(bytes).span().first(head.encoded_bytes));
  EXPECT_THAT(VerifySegmentContent(m, BandIndex(band), LayerIndex(layer), bytes.span()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr(message)));
}

TEST(SegmentContentTest, WrongContentUnderARightChecksumIsNoticed) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  using Bytes = std::byte*;
  ExpectNoticed("head 0: padding", 0, 0,
                [](uint32_t*, float16*, Bytes b, uint32_t rows) { b[4 * rows] = std::byte{1}; });
  ExpectNoticed("after", 5, 0, [](uint32_t* p, float16*, Bytes, uint32_t) { p[1] = p[0]; });
  ExpectNoticed("after", 5, 0,
                [](uint32_t* p, float16*, Bytes, uint32_t) { std::swap(p[0], p[1]); });
  ExpectNoticed("of 63", 5, 0,
                [](uint32_t* p, float16*, Bytes, uint32_t rows) { p[rows - 1] = 63; });
  ExpectNoticed("protected position 1", 5, 0,
                [](uint32_t* p, float16*, Bytes, uint32_t) { p[0] = 1; });
  // The first row of band 0 must be position 0; 1 and 2 follow, so it is the only one missing.
  ExpectNoticed("protected position", 0, 0, [](uint32_t* p, float16*, Bytes, uint32_t rows) {
    for (uint32_t i = 0; i < rows; ++i) p[i] = 10 + i;
  });
  ExpectNoticed("log score", 5, 0,
                [](uint32_t*, float16* s, Bytes, uint32_t) { s[0] = float16(std::nanf("")); });
  for (float bad : {kInfinity, -kInfinity}) {
    ExpectNoticed("log score", 5, 0,
                  [bad](uint32_t*, float16* s, Bytes, uint32_t) { s[1] = float16(bad); });
  }
  ExpectNoticed("log score", 0, 0,
                [](uint32_t*, float16* s, Bytes, uint32_t) { s[0] = float16(-1.0f); });
  ExpectNoticed("not of the window", 0, 1,
                [](uint32_t* p, float16*, Bytes, uint32_t) { p[0] -= 1; });
  ExpectNoticed("of a window", 0, 1,
                [](uint32_t*, float16* s, Bytes, uint32_t) { s[0] = float16(-1.0f); });
}

TEST(SegmentContentTest, EveryByteOfPaddingMustBeZero) {
  const CompressedObject object = MakeRandomObject(TinyShape());
  Manifest m = *object.manifest;
  AlignedBytes bytes = AlignedBytes::Copy(object.segment(BandIndex(0), LayerIndex(0)).bytes());
  HeadEntry& head = m.bands[0].layers[0].heads[0];
  const HeadBlockLayout at = LayOutHeadBlock(m.geometry, head.rows);
  const uint64_t row_array = head.rows * m.geometry.row_bytes();
  const auto inside = [](uint64_t byte, uint64_t begin, uint64_t size) {
    return byte >= begin && byte < begin + size;
  };
  for (uint64_t byte = 0; byte < at.bytes; ++byte) {
    if (inside(byte, at.positions, head.rows * 4) || inside(byte, at.log_scores, head.rows * 2) ||
        inside(byte, at.keys, row_array) || inside(byte, at.values, row_array)) {
      continue;
    }
    bytes.span()[byte] = std::byte{1};
    head.crc32c = ComputeCrc32c(std::as_const(bytes).span().first(head.encoded_bytes));
    EXPECT_THAT(VerifySegmentContent(m, BandIndex(0), LayerIndex(0), bytes.span()),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("head 0: padding")))
        << byte;
    bytes.span()[byte] = std::byte{0};
  }
}

TEST(SegmentContentTest, AFlippedByteIsDataLossAndAWrongIndexOutOfRange) {
  const CompressedObject object = MakeRandomObject(TinyShape());
  AlignedBytes bytes = AlignedBytes::Copy(object.segment(BandIndex(0), LayerIndex(0)).bytes());
  bytes.span()[200] ^= std::byte{1};
  EXPECT_THAT(VerifySegmentContent(*object.manifest, BandIndex(0), LayerIndex(0), bytes.span()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("CRC32C of head 0")));
  EXPECT_THAT(VerifySegmentContent(*object.manifest, BandIndex(2), LayerIndex(0), bytes.span()),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(VerifySegmentContent(*object.manifest, BandIndex(0), LayerIndex(2), bytes.span()),
              StatusIs(absl::StatusCode::kOutOfRange));
}

}  // namespace
}  // namespace kvtier
