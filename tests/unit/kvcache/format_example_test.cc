// The worked example of docs/object_format.md, read from the document itself.
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/bytes.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/manifest.h"
#include "kvcache/row_codec.h"
#include "kvcache/segment.h"
#include "kvcache/sha256.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint64_t ParseHex(absl::string_view text) {
  uint64_t value = 0;
  KVTIER_CHECK(absl::SimpleHexAtoi(text, &value)) << text;
  return value;
}

// The bytes of the fenced block ```hex <name>: lines `offset  bytes | note`, where `00*N` is N zero
// bytes. Every offset must be right.
std::string HexBlock(absl::string_view name) {
  const std::string doc = ReadFile(SourcePath("docs/object_format.md"));
  const std::string fence = absl::StrCat("```hex ", name, "\n");
  const size_t begin = doc.find(fence);
  KVTIER_CHECK(begin != std::string::npos) << fence;
  const size_t end = doc.find("```", begin + fence.size());
  std::string bytes;
  for (absl::string_view line : absl::StrSplit(
           doc.substr(begin + fence.size(), end - begin - fence.size()), '\n', absl::SkipEmpty())) {
    line = line.substr(0, line.find('|'));
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    KVTIER_CHECK_EQ(ParseHex(words[0]), bytes.size()) << line;
    for (size_t i = 1; i < words.size(); ++i) {
      absl::string_view word = words[i];
      uint64_t count = 1;
      if (absl::ConsumePrefix(&word, "00*")) {
        KVTIER_CHECK(absl::SimpleAtoi(word, &count)) << line;
        word = "00";
      }
      KVTIER_CHECK_EQ(word.size(), 2u) << line;
      bytes.append(count, static_cast<char>(ParseHex(word)));
    }
  }
  return bytes;
}

// The formulas of the document.
int RankOf(uint32_t layer, uint32_t head, uint32_t position) {
  return static_cast<int>((7 * (10 * layer + 5 * head + position - 1) + 3) % 20);
}
float KeyElement(uint32_t layer, uint32_t head, uint32_t position, uint32_t d) {
  return static_cast<float>(8 * (2 * layer + head) + position) + static_cast<float>(d) / 4;
}

std::vector<uint32_t> PositionsOf(uint32_t band, uint32_t layer, uint32_t head) {
  std::vector<uint32_t> positions;
  if (band == 0) positions.push_back(0);
  for (uint32_t p = 1; p < 6; ++p) {
    if ((RankOf(layer, head, p) < 8) == (band == 0)) positions.push_back(p);
  }
  return positions;
}

SegmentBuilder::Sealed BuildSegment(const Geometry& geometry, uint32_t band, uint32_t layer,
                                    CodecId codec = CodecId::kRaw) {
  std::vector<uint32_t> rows;
  for (uint32_t head = 0; head < 2; ++head) {
    rows.push_back(static_cast<uint32_t>(PositionsOf(band, layer, head).size()));
  }
  SegmentBuilder builder = SegmentBuilder::Create(geometry, codec, rows).value();
  for (uint32_t head = 0; head < 2; ++head) {
    const std::vector<uint32_t> positions = PositionsOf(band, layer, head);
    const HeadRowsMut out = builder.head(head);
    std::vector<bfloat16> keys;
    std::vector<bfloat16> values;
    for (size_t i = 0; i < positions.size(); ++i) {
      const uint32_t p = positions[i];
      out.positions[i] = p;
      out.log_scores[i] =
          float16(p == 0 ? kInfinity : 0.0f - static_cast<float>(RankOf(layer, head, p)) / 4);
      for (uint32_t d = 0; d < 4; ++d) {
        const float key = KeyElement(layer, head, p, d);
        keys.push_back(bfloat16(key));
        values.push_back(bfloat16(-1 - key));
      }
    }
    const auto* key_bytes = reinterpret_cast<const std::byte*>(keys.data());
    const auto* value_bytes = reinterpret_cast<const std::byte*>(values.data());
    KVTIER_CHECK_OK(EncodeHeadRows(geometry, codec, rows[head], key_bytes, value_bytes, out));
  }
  return std::move(builder).Seal();
}

Key ExampleKey() {
  KeyDescriptor d;
  d.head.tenant_salt = "default";
  d.head.model_digest = ComputeSha256(AsBytes("model"));
  d.head.kv_dtype = DType::kBf16;
  d.head.rope = "default theta=10000 dim=4";
  d.head.prompt_profile_digest = ComputeSha256(AsBytes("profile"));
  d.head.recipe = "kvzip/1";
  d.head.system_token_ids = {1};
  d.context_token_ids = {10, 11, 12, 13, 14};
  return ComputeKey(d).value();
}

TEST(FormatExampleTest, TheManifestOfTheDocumentHasEveryFieldItSays) {
  const std::string bytes = HexBlock("manifest");
  KVTIER_ASSERT_OK_AND_ASSIGN(const Manifest m, DecodeManifest(AsBytes(bytes)));
  EXPECT_EQ(m.key, ExampleKey());
  EXPECT_EQ(m.upload_id.ToHex(), "000102030405060708090a0b0c0d0e0f");
  EXPECT_EQ(m.model_name, "tiny");
  EXPECT_EQ(m.model_digest, ComputeSha256(AsBytes("model")));
  EXPECT_EQ(m.recipe, "kvzip/1");
  EXPECT_EQ(m.prompt_profile_digest, ComputeSha256(AsBytes("profile")));
  EXPECT_TRUE(m.last_block_hash.IsZero());
  EXPECT_EQ(m.geometry.kv_heads, 2u);
  EXPECT_EQ(m.geometry.head_dim, 4u);
  EXPECT_EQ(m.geometry.dtype, DType::kBf16);
  EXPECT_EQ(m.geometry.layers, std::vector<LayerKind>(2, LayerKind::kGlobal));
  EXPECT_EQ(m.system_tokens, 1u);
  EXPECT_EQ(m.context_tokens, 5u);
  ASSERT_EQ(m.bands.size(), 2u);
  EXPECT_EQ(m.bands[0].edge.ToString(), "0.4");
  EXPECT_EQ(m.bands[1].edge.ToString(), "1");
  EXPECT_EQ(m.bands[0].threshold, -1.75f);
  EXPECT_EQ(m.bands[1].threshold, -4.75f);
  double mass[2] = {0, 0};
  for (int rank = 0; rank < 20; ++rank) mass[rank < 8 ? 0 : 1] += std::exp(-rank / 4.0);
  EXPECT_NEAR(m.bands[0].score_mass, mass[0], 1e-14);
  EXPECT_NEAR(m.bands[1].score_mass, mass[1], 1e-14);
  for (uint32_t band = 0; band < 2; ++band) {
    for (uint32_t layer = 0; layer < 2; ++layer) {
      EXPECT_EQ(m.segment(BandIndex(band), LayerIndex(layer)),
                BuildSegment(m.geometry, band, layer).entry)
          << "band " << band << " layer " << layer;
    }
  }
  EXPECT_EQ(EncodeManifest(m), bytes);
}

TEST(FormatExampleTest, TheFidelityOfTheDocumentMakesTheManifestVersion2) {
  const std::string version1 = HexBlock("manifest");
  const std::string tail = HexBlock("fidelity");  // The checksum included.
  std::string bytes = version1.substr(0, version1.size() - 4) + tail;
  StoreLittleEndian<uint32_t>(2, AsMutableBytes(bytes).data() + 8);
  StoreLittleEndian<uint64_t>(bytes.size(), AsMutableBytes(bytes).data() + 12);
  KVTIER_ASSERT_OK_AND_ASSIGN(Manifest m, DecodeManifest(AsBytes(bytes)));
  EXPECT_EQ(m.fidelity, (Fidelity{1, 5, {4, std::nullopt}}));
  EXPECT_EQ(EncodeManifest(m), bytes);
  m.fidelity.reset();
  EXPECT_EQ(EncodeManifest(m), version1);
}

TEST(FormatExampleTest, TheSegmentOfTheDocumentIsWhatTheFormulasGive) {
  const std::string hex = HexBlock("segment");
  KVTIER_ASSERT_OK_AND_ASSIGN(const Manifest m, DecodeManifest(AsBytes(HexBlock("manifest"))));
  const AlignedBytes segment = AlignedBytes::Copy(AsBytes(hex));
  KVTIER_EXPECT_OK(VerifySegmentContent(m, BandIndex(0), LayerIndex(0), segment.span()));
  for (uint32_t head = 0; head < 2; ++head) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const HeadRows rows,
        ReadHead(m.geometry, m.segment(BandIndex(0), LayerIndex(0)), {0, 2}, segment.span(), head));
    const std::vector<uint32_t> positions = PositionsOf(0, 0, head);
    ASSERT_EQ(rows.rows, positions.size());
    for (uint32_t i = 0; i < rows.rows; ++i) {
      const uint32_t p = positions[i];
      EXPECT_EQ(rows.positions[i], p);
      EXPECT_EQ(static_cast<float>(rows.log_scores[i]),
                p == 0 ? kInfinity : -static_cast<float>(RankOf(0, head, p)) / 4);
      for (uint32_t d = 0; d < 4; ++d) {
        const auto element = [&](const std::byte* array) {
          return static_cast<float>(
              bfloat16::FromBits(LoadLittleEndian<uint16_t>(array + (i * 4 + d) * 2)));
        };
        EXPECT_EQ(element(rows.keys), KeyElement(0, head, p, d));
        EXPECT_EQ(element(rows.values), -1 - KeyElement(0, head, p, d));
      }
    }
  }
  const SegmentBuilder::Sealed built = BuildSegment(m.geometry, 0, 0);
  EXPECT_EQ(kvtier::ToString(built.bytes.span()), hex);
}

TEST(FormatExampleTest, TheInt4SegmentOfTheDocumentHoldsTheSameRows) {
  const std::string hex = HexBlock("int4");
  KVTIER_ASSERT_OK_AND_ASSIGN(Manifest m, DecodeManifest(AsBytes(HexBlock("manifest"))));
  m.recipe = "kvzip/1;codec=int4";
  for (uint32_t band = 0; band < 2; ++band) {
    for (uint32_t layer = 0; layer < 2; ++layer) {
      m.bands[band].layers[layer] = BuildSegment(m.geometry, band, layer, CodecId::kInt4).entry;
    }
  }
  KVTIER_EXPECT_OK(m.Validate());
  const SegmentBuilder::Sealed built = BuildSegment(m.geometry, 0, 0, CodecId::kInt4);
  EXPECT_EQ(kvtier::ToString(built.bytes.span()), hex);
  const AlignedBytes segment = AlignedBytes::Copy(AsBytes(hex));
  KVTIER_EXPECT_OK(VerifySegmentContent(m, BandIndex(0), LayerIndex(0), segment.span()));
  const RowCodec& codec = *FindRowCodec(CodecId::kInt4);
  for (uint32_t head = 0; head < 2; ++head) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const HeadRows rows,
        ReadHead(m.geometry, m.segment(BandIndex(0), LayerIndex(0)), {0, 2}, segment.span(), head));
    const std::vector<uint32_t> positions = PositionsOf(0, 0, head);
    EXPECT_THAT(ReadPositions(rows), IsOkAndHolds(positions));
    for (uint32_t i = 0; i < rows.rows; ++i) {
      float key[4];
      codec.DecodeRow(rows.keys + i * 2, rows.key_scales + i * 4, key);
      for (uint32_t d = 0; d < 4; ++d) {
        const float true_key = KeyElement(0, head, positions[i], d);
        EXPECT_NEAR(key[d], true_key, codec.ErrorBound(true_key - 0.75f, true_key + 0.75f));
      }
    }
  }
}

}  // namespace
}  // namespace kvtier
