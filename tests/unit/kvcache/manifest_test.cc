#include "kvcache/manifest.h"

#include <string>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

// Shapes that differ in what the format treats specially.
std::vector<ObjectShape> Shapes() {
  std::vector<ObjectShape> shapes;
  shapes.push_back(TinyShape());
  ObjectShape wide = TinyShape();
  wide.geometry.kv_heads = 5;
  wide.geometry.head_dim = 24;
  wide.geometry.dtype = DType::kF32;
  wide.context_tokens = 150;
  wide.edges = BandEdges::Default();
  shapes.push_back(wide);
  ObjectShape sliding = wide;
  sliding.geometry.layers = {LayerKind::kSliding, LayerKind::kGlobal, LayerKind::kSliding};
  sliding.window = 40;
  shapes.push_back(sliding);
  ObjectShape no_system = wide;
  no_system.system_tokens = 0;
  shapes.push_back(no_system);
  ObjectShape no_context = wide;
  no_context.context_tokens = 0;
  shapes.push_back(no_context);
  ObjectShape one_token = TinyShape();  // Most bands rank nothing.
  one_token.geometry.layers = {LayerKind::kGlobal};
  one_token.geometry.kv_heads = 1;
  one_token.system_tokens = 0;
  one_token.context_tokens = 1;
  one_token.edges = BandEdges::Default();
  shapes.push_back(one_token);
  ObjectShape one_band = wide;
  one_band.edges = BandEdges::Parse("1").value();
  shapes.push_back(one_band);
  for (const char* recipe : {"uniform/1", "kvpress/1", "somebody else's"}) {
    for (const ObjectShape& base : {sliding, no_system, one_token}) {
      ObjectShape other = base;
      other.recipe = recipe;
      shapes.push_back(other);
    }
  }
  ObjectShape whole_heads = sliding;
  whole_heads.recipe = "head/1;scores=" + std::string(64, 'a');
  shapes.push_back(whole_heads);
  return shapes;
}

TEST(ManifestTest, RoundTripsBitByBit) {
  for (const ObjectShape& shape : Shapes()) {
    const CompressedObject object = MakeRandomObject(shape);
    const std::string bytes = EncodeManifest(*object.manifest);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Manifest read, DecodeManifest(AsBytes(bytes)));
    EXPECT_EQ(read, *object.manifest);
    EXPECT_EQ(EncodeManifest(read), bytes);
  }
}

TEST(ManifestTest, WhatVersion1CanSayIsWrittenAsVersion1) {
  Manifest m = *MakeRandomObject(Shapes()[1]).manifest;
  const auto version = [&] { return int{EncodeManifest(m)[8]}; };
  EXPECT_EQ(version(), 1);
  m.fidelity = Fidelity{2, 100, {10, 20, std::nullopt, 60, 80, 100}};
  EXPECT_EQ(version(), 2);
  m.fidelity.reset();
  m.bands.pop_back();
  EXPECT_EQ(version(), 2);
}

TEST(ManifestTest, Version2RoundTripsBitByBit) {
  for (const ObjectShape& shape : Shapes()) {
    for (uint32_t bands = 1; bands <= shape.edges.size(); ++bands) {
      for (const bool measured : {false, true}) {
        Manifest m = *MakeRandomObject(shape).manifest;
        m.bands.resize(bands);
        if (measured && m.context_tokens > 0) {
          m.fidelity = Fidelity{1, m.context_tokens, {}};
          m.fidelity->correct.assign(bands, std::nullopt);
          m.fidelity->correct[bands / 2] = m.context_tokens;
        }
        const std::string bytes = EncodeManifest(m);
        KVTIER_ASSERT_OK_AND_ASSIGN(const Manifest read, DecodeManifest(AsBytes(bytes)));
        EXPECT_EQ(read, m);
        EXPECT_EQ(EncodeManifest(read), bytes);
      }
    }
  }
}

TEST(ManifestTest, CountsBytesAndRows) {
  for (const ObjectShape& shape : Shapes()) {
    const CompressedObject object = MakeRandomObject(shape);
    const Manifest& m = *object.manifest;
    uint64_t bytes = 0;
    uint64_t rows = 0;
    for (uint32_t b = 0; b < m.bands.size(); ++b) {
      EXPECT_EQ(m.PrefixBytes(b), bytes);
      for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
        const SegmentEntry& entry = m.segment(BandIndex(b), LayerIndex(l));
        EXPECT_EQ(entry.encoded_bytes(),
                  object.segment(BandIndex(b), LayerIndex(l)).bytes().size());
        bytes += entry.encoded_bytes();
        if (m.geometry.layers[l] == LayerKind::kGlobal) rows += entry.rows();
      }
    }
    EXPECT_EQ(m.total_bytes(), bytes);
    EXPECT_EQ(rows, m.logical_length() * m.geometry.scored_layer_count() * m.geometry.kv_heads);
    EXPECT_EQ(rows, m.scored_pairs() + m.protected_tokens() * m.geometry.scored_layer_count() *
                                           m.geometry.kv_heads);
    EXPECT_EQ(m.protected_tokens(), shape.recipe == "kvpress/1" ? 0 : shape.system_tokens);
    EXPECT_EQ(m.edges().size(), shape.edges.size());
    EXPECT_EQ(m.dense_bytes(), m.logical_length() * m.geometry.dense_token_bytes());
  }
}

TEST(ManifestTest, HeadBytesOfAnyPartitionConcatenateToTheSegment) {
  ObjectShape shape = Shapes()[1];
  shape.geometry.kv_heads = 8;
  const CompressedObject object = MakeRandomObject(shape);
  const SegmentEntry& entry = object.manifest->segment(BandIndex(0), LayerIndex(1));
  for (uint32_t parts : {1u, 2u, 4u, 8u}) {
    uint64_t at = 0;
    for (uint32_t part = 0; part < parts; ++part) {
      const auto range = entry.HeadBytes({part * 8 / parts, (part + 1) * 8 / parts});
      EXPECT_EQ(range.begin, at);
      at = range.end;
    }
    EXPECT_EQ(at, entry.encoded_bytes());
  }
  EXPECT_EQ(entry.HeadBytes({3, 3}).begin, entry.HeadBytes({3, 3}).end);
}

TEST(ManifestDeathTest, HeadBytesRequiresARangeOfTheEntry) {
  const CompressedObject object = MakeRandomObject(TinyShape());
  const SegmentEntry& entry = object.manifest->segment(BandIndex(0), LayerIndex(0));
  EXPECT_DEATH(entry.HeadBytes({0, 3}), "CHECK");
  EXPECT_DEATH(entry.HeadBytes({2, 1}), "CHECK");
}

TEST(ManifestTest, AFlippedBitAnywhereIsDataLoss) {
  const std::string good = EncodeManifest(*MakeRandomObject(TinyShape()).manifest);
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      ASSERT_THAT(DecodeManifest(AsBytes(bad)), StatusIs(absl::StatusCode::kDataLoss))
          << "byte " << at << " bit " << bit;
    }
  }
}

TEST(ManifestTest, ACutAnywhereIsDataLoss) {
  const std::string good = EncodeManifest(*MakeRandomObject(TinyShape()).manifest);
  for (size_t size = 0; size < good.size(); ++size) {
    ASSERT_THAT(DecodeManifest(AsBytes(absl::string_view(good).substr(0, size))),
                StatusIs(absl::StatusCode::kDataLoss))
        << size;
  }
  EXPECT_THAT(DecodeManifest(AsBytes(good + '\0')), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace kvtier
