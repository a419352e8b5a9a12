// How much smaller an object is than the dense cache it came from, everything counted: codes,
// scales, scores, positions, padding and the manifest.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "kvcache/manifest.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

// Llama-3.1-8B at 32K tokens, all layers alike but for their scores; a few of them stand for all.
constexpr uint32_t kLayers = 32;
constexpr uint32_t kLayersMade = 2;
constexpr uint32_t kSystemTokens = 32;
constexpr uint32_t kContextTokens = 32768;

Geometry Llama8b(uint32_t layers) {
  Geometry geometry;
  geometry.kv_heads = 8;
  geometry.head_dim = 128;
  geometry.dtype = DType::kBf16;
  geometry.layers = std::vector<LayerKind>(layers, LayerKind::kGlobal);
  return geometry;
}

// Scores as scoring finds them: heads differ in how much they matter, and what matters comes in
// runs of neighbouring tokens.
std::vector<float> RaggedScores(std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> scores;
  for (uint32_t head = 0; head < kLayersMade * 8; ++head) {
    const float level = 1.5f * normal(random);
    float run = 0;
    for (uint32_t token = 0; token < kContextTokens; ++token) {
      run = 0.9f * run + normal(random);
      scores.push_back(level + run + normal(random));
    }
  }
  return scores;
}

struct Sizes {
  uint64_t segments = 0;  // Of the bands up to ratio 0.3, kLayersMade layers.
  uint64_t rows = 0;
};

// Encodes bands 0.1, 0.2 and 0.3 of kLayersMade layers for real.
Sizes Encode(CodecId codec) {
  std::mt19937_64 random(11);
  const Geometry geometry = Llama8b(kLayersMade);
  std::vector<float> scores = RaggedScores(random);
  std::vector<float> sorted = scores;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const auto threshold = [&](double edge) {
    return sorted[static_cast<size_t>(edge * static_cast<double>(sorted.size())) - 1];
  };
  const float from[] = {threshold(0.1), threshold(0.2), threshold(0.3)};
  std::vector<std::byte> rows(size_t{kSystemTokens + kContextTokens} * geometry.row_bytes());
  for (size_t i = 0; i < rows.size(); i += 2) {
    // The cost of the payload does not depend on its values.
    StoreLittleEndian(bfloat16(static_cast<float>(i % 1024) / 512 - 1).bits, rows.data() + i);
  }
  Sizes sizes;
  for (uint32_t layer = 0; layer < kLayersMade; ++layer) {
    for (int band = 0; band < 3; ++band) {
      std::vector<std::vector<uint32_t>> positions(8);
      for (uint32_t head = 0; head < 8; ++head) {
        for (uint32_t p = 0; band == 0 && p < kSystemTokens; ++p) positions[head].push_back(p);
        for (uint32_t token = 0; token < kContextTokens; ++token) {
          const float score = scores[(layer * 8 + head) * size_t{kContextTokens} + token];
          const bool above = band > 0 && score >= from[band - 1];
          if (score >= from[band] && !above) positions[head].push_back(kSystemTokens + token);
        }
      }
      std::vector<uint32_t> counts;
      for (const auto& head : positions) counts.push_back(static_cast<uint32_t>(head.size()));
      SegmentBuilder builder = SegmentBuilder::Create(geometry, codec, counts).value();
      for (uint32_t head = 0; head < 8; ++head) {
        const HeadRowsMut out = builder.head(head);
        std::copy(positions[head].begin(), positions[head].end(), out.positions.begin());
        KVTIER_EXPECT_OK(
            EncodeHeadRows(geometry, codec, counts[head], rows.data(), rows.data(), out));
      }
      const SegmentBuilder::Sealed sealed = std::move(builder).Seal();
      sizes.segments += sealed.bytes.size();
      sizes.rows += sealed.entry.rows();
    }
  }
  return sizes;
}

// The manifest of the whole object, all six default bands included: a reader of 0.3 reads it all.
uint64_t ManifestBytes(CodecId codec) {
  Manifest m;
  m.model_name = "llama-3.1-8b-instruct";
  m.recipe = absl::StrCat("kvzip/1;codec=", CodecName(codec));
  m.geometry = Llama8b(kLayers);
  for (int band = 0; band < 6; ++band) {
    BandEntry& entry = m.bands.emplace_back();
    entry.layers.assign(kLayers, SegmentEntry{codec, std::vector<HeadEntry>(8)});
  }
  return EncodeManifest(m).size();
}

double Factor(CodecId codec) {
  const Sizes sizes = Encode(codec);
  const uint64_t tokens = kSystemTokens + kContextTokens;
  const double stored = static_cast<double>(sizes.segments) * kLayers / kLayersMade +
                        static_cast<double>(ManifestBytes(codec));
  const double dense =
      static_cast<double>(tokens) * static_cast<double>(Llama8b(kLayers).dense_token_bytes());
  const double kept =
      static_cast<double>(sizes.rows) / kLayersMade / 8 / static_cast<double>(tokens);
  EXPECT_GE(kept, 0.3);
  std::printf("%s at ratio 0.3: %.2fx smaller than dense, %.2f bytes per kept row\n",
              std::string(CodecName(codec)).c_str(), dense / stored,
              static_cast<double>(sizes.segments) / static_cast<double>(sizes.rows));
  return dense / stored;
}

TEST(PackedSizeTest, Int4AtRatio30IsTwelveTimesSmallerThanDense) {
  EXPECT_GE(Factor(CodecId::kInt4), 12.0);
}

TEST(PackedSizeTest, Int8AndRawAtRatio30) {
  EXPECT_GE(Factor(CodecId::kInt8), 6.4);
  EXPECT_GE(Factor(CodecId::kRaw), 3.25);
}

}  // namespace
}  // namespace kvtier
