// Ranking and packing, wherever a backend does them, against plain twins on the host: the same
// bands, and the same bytes of every segment.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/dense_cache.h"
#include "compressor/packer.h"
#include "compressor/packing.h"
#include "compressor/rule_ranking.h"
#include "gmock/gmock.h"
#include "kvcache/recipe.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

struct PackShape {
  std::string recipe = "kvzip";
  CodecId codec = CodecId::kRaw;
  DType dtype = DType::kBf16;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 64;
  uint64_t system_tokens = 3;
  uint64_t context_tokens = 70;
  bool sliding = true;  // The second of three layers.

  int64_t length() const { return static_cast<int64_t>(system_tokens + context_tokens); }
};

Manifest IdentityOf(const PackShape& shape) {
  Recipe recipe = Recipe::ParseRequest(shape.recipe).value();
  recipe.row_codec = shape.codec;
  if (recipe.scorer == Scorer::kHead) recipe.head_scores = *Digest::FromHex(std::string(64, 'a'));
  Manifest identity;
  identity.key = *Key::FromBytes(std::string(32, 'k'));
  identity.upload_id = MakeUploadId();
  identity.recipe = recipe.ToString();
  identity.geometry = {
      .kv_heads = shape.kv_heads,
      .head_dim = shape.head_dim,
      .dtype = shape.dtype,
      .layers = {LayerKind::kGlobal, shape.sliding ? LayerKind::kSliding : LayerKind::kGlobal,
                 LayerKind::kGlobal}};
  identity.system_tokens = shape.system_tokens;
  identity.context_tokens = shape.context_tokens;
  return identity;
}

// Keys and values of one layer, [length, kv_heads * head_dim] each.
struct LayerRows {
  Floats keys;
  Floats values;
};

std::vector<LayerRows> RandomLayers(const PackShape& shape, std::mt19937_64& random) {
  std::vector<LayerRows> layers;
  const int64_t count = shape.length() * shape.kv_heads * shape.head_dim;
  for (int l = 0; l < 3; ++l) {
    layers.push_back({RandomFloats(random, count, 3), RandomFloats(random, count, 3)});
  }
  // Rows whose codes are all alike, and one that an outlier makes coarse.
  std::fill_n(layers[0].keys.begin(), shape.head_dim, 0.0f);
  std::fill_n(layers[0].values.begin(), shape.head_dim, -0.25f);
  layers[2].keys[5] = 1000;
  return layers;
}

DenseCache FillCache(Backend& backend, const Geometry& geometry, int64_t length,
                     const std::vector<LayerRows>& layers) {
  // Room behind the rows: heads lie apart.
  DenseCache cache = DenseCache::Create(backend, geometry, length + 5).value();
  const int64_t cols = int64_t{geometry.kv_heads} * geometry.head_dim;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Tensor k = MakeActivations(backend, layers[l].keys, length, cols);
    const Tensor v = MakeActivations(backend, layers[l].values, length, cols);
    KVTIER_EXPECT_OK(backend.AppendKv(k, v, cache.layer(static_cast<int64_t>(l)), 0));
  }
  cache.SetLength(length);
  return cache;
}

ScoreTable ScoresFor(const Manifest& identity) {
  return ScoreTable::Create(identity.geometry.scored_layer_count(), identity.geometry.kv_heads,
                            identity.ranked_tokens());
}

// The same object by the backend and by the twins.
struct Packed {
  absl::StatusOr<CompressedObject> here;
  absl::StatusOr<CompressedObject> expected;
};

Packed PackBoth(Backend& here, Backend& reference, const PackShape& shape,
                const std::vector<LayerRows>& layers, const ScoreTable& scores) {
  const Manifest identity = IdentityOf(shape);
  const BandEdges edges = BandEdges::Default();
  const bool system_prompt = shape.system_tokens > 0;
  const int64_t window = shape.sliding ? 20 : 0;
  const auto pack_here = [&]() -> absl::StatusOr<CompressedObject> {
    const DenseCache cache = FillCache(here, identity.geometry, shape.length(), layers);
    absl::StatusOr<std::unique_ptr<BackendScores>> placed = PlaceScores(here, scores);
    if (!placed.ok()) return placed.status();
    absl::StatusOr<std::unique_ptr<RankedRows>> ranked =
        RankRows(here, {.scores = placed->get(),
                        .edges = &edges,
                        .rule = identity.selection(),
                        .system_prompt = system_prompt});
    if (!ranked.ok()) return ranked.status();
    return PackObject(here, cache, **ranked, edges, identity, nullptr, window);
  };
  const auto pack_expected = [&]() -> absl::StatusOr<CompressedObject> {
    const DenseCache cache = FillCache(reference, identity.geometry, shape.length(), layers);
    absl::StatusOr<BandAssignment> bands =
        AssignBandsByRuleReference(scores, edges, identity.selection(), system_prompt);
    if (!bands.ok()) return bands.status();
    return PackObject(reference, cache, scores, *bands, edges, identity, nullptr, window);
  };
  return {pack_here(), pack_expected()};
}

void ExpectSame(const Packed& packed) {
  KVTIER_ASSERT_OK(packed.here);
  KVTIER_ASSERT_OK(packed.expected);
  Manifest here = *packed.here->manifest;
  const Manifest& expected = *packed.expected->manifest;
  ASSERT_EQ(here.bands.size(), expected.bands.size());
  for (size_t b = 0; b < here.bands.size(); ++b) {
    EXPECT_NEAR(here.bands[b].score_mass, expected.bands[b].score_mass,
                1e-12 * (1 + expected.bands[b].score_mass));
    here.bands[b].score_mass = expected.bands[b].score_mass;
  }
  EXPECT_EQ(here, expected);
  ASSERT_EQ(packed.here->segments.size(), packed.expected->segments.size());
  for (size_t s = 0; s < packed.here->segments.size(); ++s) {
    const auto a = packed.here->segments[s].bytes();
    const auto b = packed.expected->segments[s].bytes();
    ASSERT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << "segment " << s;
  }
}

// Between 0 and -9, in steps that make many ties; 0: hardly any.
void RandomScores(std::mt19937_64& random, float step, ScoreTable& scores) {
  std::uniform_real_distribution<float> uniform(-9, 0);
  for (float& score : scores.log_scores) {
    score = uniform(random);
    if (step > 0) score = std::round(score / step) * step;  // Also -0.
  }
}

TEST_P(BackendConformanceTest, PackedObjectsAreThoseOfTheHost) {
  std::mt19937_64 random(TestSeed());
  for (const char* recipe : {"kvzip", "uniform", "kvpress", "head"}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      for (const CodecId codec : {CodecId::kRaw, CodecId::kInt8, CodecId::kInt4}) {
        for (const uint32_t head_dim : {64u, 20u}) {
          PackShape shape{.recipe = recipe, .codec = codec, .dtype = dtype, .head_dim = head_dim};
          if (head_dim == 20) shape.system_tokens = 0;  // The first token of each head first.
          SCOPED_TRACE(absl::StrCat(recipe, " ", DTypeName(dtype), " ", CodecName(codec),
                                    " head_dim ", head_dim));
          ScoreTable scores = ScoresFor(IdentityOf(shape));
          RandomScores(random, head_dim == 20 ? 0.5f : 0, scores);
          ExpectSame(PackBoth(*backend_, *reference_, shape, RandomLayers(shape, random), scores));
        }
      }
    }
  }
}

TEST_P(BackendConformanceTest, PackingTakesEveryShapeOfRanking) {
  std::mt19937_64 random(TestSeed());
  struct Case {
    const char* name;
    uint64_t context_tokens;
    std::function<void(ScoreTable&)> fill;
  };
  const Case cases[] = {
      {"all scores equal", 33, [](ScoreTable& s) { std::ranges::fill(s.log_scores, -2.0f); }},
      {"zeros of both signs", 33,
       [](ScoreTable& s) {
         for (uint64_t i = 0; i < s.pairs(); ++i) s.log_scores[i] = i % 3 == 0 ? -0.0f : 0.0f;
       }},
      {"-inf, and scores that no fp16 holds", 40,
       [&](ScoreTable& s) {
         RandomScores(random, 0, s);
         for (uint64_t i = 0; i < s.pairs(); i += 2) s.log_scores[i] = -kInfinity;
         for (uint64_t i = 1; i < s.pairs(); i += 8) s.log_scores[i] = -1e6f;
         for (uint64_t i = 3; i < s.pairs(); i += 8) s.log_scores[i] = 600;
       }},
      {"one head holds nearly everything, another nothing", 90,
       [&](ScoreTable& s) {
         RandomScores(random, 0, s);
         for (uint64_t t = 0; t < s.tokens; ++t) {
           s.at(1, 0, t) += 20;
           s.at(0, 1, t) -= 20;
         }
       }},
      {"one token", 1, [&](ScoreTable& s) { RandomScores(random, 0, s); }},
      {"more tokens than a block ranks", 700, [&](ScoreTable& s) { RandomScores(random, 1, s); }},
  };
  for (const Case& c : cases) {
    for (const char* recipe : {"kvzip", "uniform"}) {
      for (const uint64_t system_tokens : {0, 4}) {
        SCOPED_TRACE(absl::StrCat(c.name, " ", recipe, " system ", system_tokens));
        const PackShape shape{.recipe = recipe,
                              .codec = system_tokens == 0 ? CodecId::kRaw : CodecId::kInt4,
                              .head_dim = 16,
                              .system_tokens = system_tokens,
                              .context_tokens = c.context_tokens,
                              .sliding = false};
        ScoreTable scores = ScoresFor(IdentityOf(shape));
        c.fill(scores);
        ExpectSame(PackBoth(*backend_, *reference_, shape, RandomLayers(shape, random), scores));
      }
    }
  }
}

TEST_P(BackendConformanceTest, RankingNamesAScoreThatIsNone) {
  std::mt19937_64 random(TestSeed());
  for (const char* recipe : {"kvzip", "uniform"}) {
    for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
      for (const uint64_t token : {7, 0}) {
        // Without a system prompt the first token's score ranks nothing, and is looked at, too.
        const PackShape shape{.recipe = recipe, .system_tokens = 0, .context_tokens = 9};
        ScoreTable scores = ScoresFor(IdentityOf(shape));
        RandomScores(random, 0, scores);
        scores.at(1, 0, token) = wrong;
        scores.at(1, 1, 3) = wrong;  // The first one is named.
        const BandEdges edges = BandEdges::Default();
        KVTIER_ASSERT_OK_AND_ASSIGN(const auto placed, PlaceScores(*backend_, scores));
        EXPECT_THAT(RankRows(*backend_, {.scores = placed.get(),
                                         .edges = &edges,
                                         .rule = IdentityOf(shape).selection(),
                                         .system_prompt = false}),
                    StatusIs(kInvalid, HasSubstr(absl::StrCat("score of layer 1, head 0, token ",
                                                              token, " is ", wrong))));
      }
    }
  }
  ScoreTable torn = ScoreTable::Create(2, 2, 4);
  torn.log_scores.pop_back();
  const BandEdges edges = BandEdges::Default();
  EXPECT_THAT(PlaceScores(*backend_, torn),
              StatusIs(kInvalid, HasSubstr("15 scores for 2 layers x 2 heads x 4 tokens")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto whole,
                              PlaceScores(*backend_, ScoreTable::Create(2, 2, 4)));
  EXPECT_THAT(RankRows(*backend_,
                       {.scores = whole.get(), .edges = &edges, .rule = SelectionRule::kPerLayer}),
              StatusIs(kInvalid));
}

// Of an object made from the lower bands of another.
TEST_P(BackendConformanceTest, RankingRefusesEdgesThatDoNotEndAtOne) {
  std::mt19937_64 random(TestSeed());
  ScoreTable scores = ScoreTable::Create(2, 2, 40);
  RandomScores(random, 0, scores);
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandEdges edges, BandEdges::ParseTruncated("0.1,0.5"));
  for (const SelectionRule rule : {SelectionRule::kExact, SelectionRule::kPerHead,
                                   SelectionRule::kWholeHeads, SelectionRule::kKvpress}) {
    SCOPED_TRACE(static_cast<int>(rule));
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto placed, PlaceScores(*backend_, scores));
    const absl::Status here =
        RankRows(*backend_, {.scores = placed.get(), .edges = &edges, .rule = rule}).status();
    EXPECT_THAT(here, StatusIs(kInvalid, HasSubstr("rank ends")));
    EXPECT_EQ(here, AssignBandsByRule(scores, edges, rule, /*system_prompt=*/false).status());
  }
}

// Heads in order, of each its keys first, wherever the rows lie. All rows here are of band 0.
TEST_P(BackendConformanceTest, OfSeveralRowsThatTheCodecCannotHoldPackingNamesTheHosts) {
  std::mt19937_64 random(TestSeed());
  struct Case {
    int64_t value_head, value_row, key_head, key_row;
    const char* named;
  };
  const Case cases[] = {{1, 0, 1, 2, "head 1 band 0: keys: row 2"},
                        {1, 2, 1, 0, "head 1 band 0: keys: row 0"},
                        {0, 2, 1, 0, "head 0 band 0: values: row 2"},
                        {1, 0, 0, 2, "head 0 band 0: keys: row 2"}};
  for (const CodecId codec : {CodecId::kInt8, CodecId::kInt4}) {
    for (const Case& c : cases) {
      SCOPED_TRACE(absl::StrCat(CodecName(codec), " ", c.named));
      const PackShape shape{.codec = codec, .dtype = DType::kF32};
      ScoreTable scores = ScoresFor(IdentityOf(shape));
      RandomScores(random, 0, scores);
      std::vector<LayerRows> layers = RandomLayers(shape, random);
      layers[2].values[(c.value_row * shape.kv_heads + c.value_head) * shape.head_dim] = kInfinity;
      layers[2].keys[(c.key_row * shape.kv_heads + c.key_head) * shape.head_dim] = kInfinity;
      const Packed packed = PackBoth(*backend_, *reference_, shape, layers, scores);
      EXPECT_EQ(packed.here.status(), packed.expected.status());
      EXPECT_THAT(packed.here.status().message(), HasSubstr(c.named));
    }
  }
}

TEST_P(BackendConformanceTest, PackingNamesARowThatTheCodecCannotHold) {
  std::mt19937_64 random(TestSeed());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const CodecId codec : {CodecId::kInt8, CodecId::kInt4}) {
    for (const float wrong : {nan, kInfinity, -3e38f}) {
      for (const bool of_key : {true, false}) {
        for (const int64_t position : {2, 30}) {  // Protected, and ranked.
          SCOPED_TRACE(absl::StrCat(CodecName(codec), " ", wrong, " at ", position));
          const PackShape shape{.codec = codec, .dtype = DType::kF32};
          ScoreTable scores = ScoresFor(IdentityOf(shape));
          RandomScores(random, 0, scores);
          std::vector<LayerRows> layers = RandomLayers(shape, random);
          Floats& rows = of_key ? layers[2].keys : layers[2].values;
          rows[(position * shape.kv_heads + 1) * shape.head_dim + 9] = wrong;
          const Packed packed = PackBoth(*backend_, *reference_, shape, layers, scores);
          ASSERT_FALSE(packed.expected.ok());
          EXPECT_EQ(packed.here.status(), packed.expected.status());
          EXPECT_THAT(packed.here.status().message(), HasSubstr("layer 2 head 1 band"));
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvtier
