#include "compressor/rebanding.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "compressor/dense_cache.h"
#include "compressor/packing.h"
#include "compressor/ranking.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/segment.h"
#include "tests/testing/random.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

Ratio R(double ratio) { return Ratio::FromDouble(ratio).value(); }
BandEdges Edges(absl::string_view text) { return BandEdges::ParseTruncated(text).value(); }

struct Shape {
  std::vector<LayerKind> layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
  uint32_t kv_heads = 3;
  uint32_t head_dim = 8;
  uint64_t system_tokens = 4;
  uint64_t context_tokens = 90;
  // Scores are multiples of this: large steps make many ties, also in fp16. 0: as random gives
  // them.
  float step = 0;
  uint64_t seed = 1;
};

// One context, cut as often as wanted: cache and scores depend on the shape alone.
class Context {
 public:
  explicit Context(const Shape& shape) : shape_(shape), backend_(MakeReferenceBackend()) {
    std::mt19937_64 random(shape.seed);
    identity_ = *MakeRandomObject(TinyShape()).manifest;
    identity_.geometry = {shape.kv_heads, shape.head_dim, DType::kBf16, shape.layers};
    identity_.system_tokens = shape.system_tokens;
    identity_.context_tokens = shape.context_tokens;
    identity_.recipe = "kvzip/1";
    identity_.bands.clear();
    const auto length = static_cast<int64_t>(identity_.logical_length());
    cache_.emplace(DenseCache::Create(*backend_, identity_.geometry, length).value());
    for (size_t l = 0; l < shape.layers.size(); ++l) {
      const KvLayerView layer = cache_->layer(static_cast<int64_t>(l));
      const size_t bytes = shape.kv_heads * static_cast<size_t>(length) * shape.head_dim * 2;
      std::memcpy(layer.keys, RandomBytes(random, bytes).data(), bytes);
      std::memcpy(layer.values, RandomBytes(random, bytes).data(), bytes);
    }
    cache_->SetLength(length);
    scores_ = ScoreTable::Create(identity_.geometry.scored_layer_count(), shape.kv_heads,
                                 shape.context_tokens);
    std::uniform_real_distribution<float> score(-9, 0);
    for (float& s : scores_.log_scores) {
      s = score(random);
      if (shape.step > 0) s = std::round(s / shape.step) * shape.step;
    }
  }

  CompressedObject Pack(const BandEdges& edges) const {
    const BandAssignment bands =
        AssignBands(scores_, edges, /*first_token_first=*/shape_.system_tokens == 0).value();
    return PackObject(*backend_, *cache_, scores_, bands, edges, identity_).value();
  }
  const ScoreTable& scores() const { return scores_; }

 private:
  Shape shape_;
  std::unique_ptr<Backend> backend_;
  Manifest identity_;
  std::optional<DenseCache> cache_;
  ScoreTable scores_;
};

StoredBands Prefix(const CompressedObject& object, uint32_t bands) {
  const uint64_t layers = object.manifest->geometry.layer_count();
  return {
      object.manifest,
      bands,
      {object.segments.begin(), object.segments.begin() + static_cast<int64_t>(bands * layers)}};
}
StoredBands Whole(const CompressedObject& object) {
  return Prefix(object, static_cast<uint32_t>(object.manifest->bands.size()));
}

CompressedObject Reband(const StoredBands& stored, const BandEdges& edges) {
  const absl::StatusOr<Rebander> rebander = Rebander::Create(stored);
  EXPECT_THAT(rebander, IsOk());
  const absl::StatusOr<RebandPlan> plan = rebander->Plan(edges);
  EXPECT_THAT(plan, IsOk());
  EXPECT_EQ(plan->band, RebandReference(stored, edges).value());
  absl::StatusOr<CompressedObject> object = rebander->Pack(*plan);
  EXPECT_THAT(object, IsOk());
  for (size_t b = 0; b < plan->edges.size(); ++b) {
    EXPECT_EQ(plan->band_bytes[b], object->manifest->bands[b].encoded_bytes());
  }
  return *std::move(object);
}

void ExpectIntact(const CompressedObject& object) {
  const Manifest& m = *object.manifest;
  KVTIER_EXPECT_OK(m.Validate());
  for (uint32_t b = 0; b < m.bands.size(); ++b) {
    for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
      KVTIER_EXPECT_OK(VerifySegmentContent(m, BandIndex(b), LayerIndex(l),
                                            object.segment(BandIndex(b), LayerIndex(l)).bytes()));
    }
  }
}

// Manifests but for the upload id, and every byte.
void ExpectSameObject(const CompressedObject& a, const CompressedObject& b) {
  Manifest renamed = *a.manifest;
  EXPECT_NE(renamed.upload_id, b.manifest->upload_id);
  renamed.upload_id = b.manifest->upload_id;
  EXPECT_EQ(renamed, *b.manifest);
  ASSERT_EQ(a.segments.size(), b.segments.size());
  for (size_t i = 0; i < a.segments.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(a.segments[i].bytes(), b.segments[i].bytes())) << i;
  }
}

// (layer, head, position) -> all bytes of the row, of bands 0..bands-1.
using Rows = std::map<std::tuple<uint32_t, uint32_t, uint32_t>, std::string>;
Rows RowsOf(const CompressedObject& object, uint32_t bands) {
  const Manifest& m = *object.manifest;
  Rows rows;
  for (uint32_t b = 0; b < bands; ++b) {
    for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
      for (uint32_t h = 0; h < m.geometry.kv_heads; ++h) {
        const HeadRows head =
            ReadHead(m.geometry, m.segment(BandIndex(b), LayerIndex(l)), {0, m.geometry.kv_heads},
                     object.segment(BandIndex(b), LayerIndex(l)).bytes(), h)
                .value();
        for (uint32_t i = 0; i < head.rows; ++i) {
          const uint64_t bytes = m.geometry.row_bytes();
          std::string row = absl::StrCat(head.log_scores[i].bits, ":");
          row.append(reinterpret_cast<const char*>(head.keys) + i * bytes, bytes);
          row.append(reinterpret_cast<const char*>(head.values) + i * bytes, bytes);
          EXPECT_TRUE(rows.emplace(std::tuple(l, h, head.positions[i]), row).second);
        }
      }
    }
  }
  return rows;
}
bool Includes(const Rows& all, const Rows& part) {
  return std::includes(all.begin(), all.end(), part.begin(), part.end());
}

std::vector<Shape> Shapes() {
  return {Shape{},
          Shape{.step = 0.5f},
          Shape{.system_tokens = 0},
          Shape{.system_tokens = 0, .step = 1.0f},
          Shape{.kv_heads = 1, .context_tokens = 1},
          Shape{.layers = {LayerKind::kGlobal}, .system_tokens = 0, .context_tokens = 7},
          Shape{.layers = {LayerKind::kSliding}, .context_tokens = 20},
          Shape{.layers = {LayerKind::kGlobal, LayerKind::kGlobal}, .context_tokens = 700}};
}

TEST(RebandingTest, TheSameEdgesGiveTheSameBytes) {
  for (const Shape& shape : Shapes()) {
    for (const char* text : {"0.1,0.2,0.3,0.4,0.6,1", "1", "0.001,0.5,1"}) {
      const CompressedObject object = Context(shape).Pack(Edges(text));
      const CompressedObject again = Reband(Whole(object), Edges(text));
      ExpectIntact(again);
      ExpectSameObject(object, again);
    }
  }
}

TEST(RebandingTest, TheSameEdgesGiveTheSameBytesUnderEveryRecipe) {
  for (const char* recipe : {"kvzip+/1", "uniform/1", "kvpress/1", "full-softmax/1", "opaque",
                             "kvzip/1;codec=int8", "uniform/1;codec=int4"}) {
    SCOPED_TRACE(recipe);
    ObjectShape shape = TinyShape();
    shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
    shape.context_tokens = 50;
    shape.window = 9;
    shape.edges = BandEdges::Default();
    shape.recipe = recipe;
    const CompressedObject object = MakeRandomObject(shape);
    ExpectSameObject(object, Reband(Whole(object), shape.edges));
    ExpectIntact(Reband(Whole(object), Edges("0.05,0.37,0.93")));
    ExpectIntact(Reband(Prefix(object, 3), Edges("0.05,0.3")));
  }
}

TEST(RebandingTest, StoredEdgesKeepTheirVeryPairs) {
  for (const Shape& shape : Shapes()) {
    const CompressedObject object = Context(shape).Pack(BandEdges::Default());
    const CompressedObject again = Reband(Whole(object), Edges("0.05,0.1,0.23,0.4,0.41,0.6,0.8,1"));
    ExpectIntact(again);
    EXPECT_EQ(RowsOf(again, 2), RowsOf(object, 1));
    EXPECT_EQ(RowsOf(again, 4), RowsOf(object, 4));
    EXPECT_EQ(RowsOf(again, 6), RowsOf(object, 5));
    EXPECT_EQ(RowsOf(again, 8), RowsOf(object, 6));
    // 0.23 lies inside of band 2, so it holds what 0.2 holds, and nothing that 0.3 does not.
    EXPECT_TRUE(Includes(RowsOf(again, 3), RowsOf(object, 2)));
    EXPECT_TRUE(Includes(RowsOf(object, 3), RowsOf(again, 3)));
  }
}

TEST(RebandingTest, FewerEdgesAreDirectPacking) {
  for (const Shape& shape : Shapes()) {
    const Context context(shape);
    const CompressedObject direct = context.Pack(Edges("0.2,0.6,1"));
    const CompressedObject again =
        Reband(Whole(context.Pack(BandEdges::Default())), Edges("0.2,0.6,1"));
    for (size_t i = 0; i < direct.segments.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(direct.segments[i].bytes(), again.segments[i].bytes()));
    }
    for (size_t b = 0; b < 3; ++b) {
      const BandEntry& expected = direct.manifest->bands[b];
      EXPECT_EQ(again.manifest->bands[b].threshold, expected.threshold);
      EXPECT_NEAR(again.manifest->bands[b].score_mass, expected.score_mass,
                  1e-12 * expected.score_mass);
    }
  }
}

TEST(RebandingTest, MoreEdgesAreDirectPackingUpToTiesInFp16) {
  const Shape shape = {.layers = {LayerKind::kGlobal, LayerKind::kGlobal}, .context_tokens = 900};
  const Context context(shape);
  const BandEdges edges = Edges("0.13,0.3,0.77,1");
  const CompressedObject direct = context.Pack(edges);
  const CompressedObject again = Reband(Whole(context.Pack(Edges("0.3,1"))), edges);
  EXPECT_EQ(RowsOf(direct, 2), RowsOf(again, 2));
  int moved = 0;
  for (const uint32_t bands : {1u, 3u}) {
    const BandEntry& expected = direct.manifest->bands[bands - 1];
    const float16 cut(expected.threshold);
    const Rows rows = RowsOf(direct, bands);
    for (const auto& [place, row] : RowsOf(again, bands)) {
      if (rows.contains(place)) continue;
      EXPECT_EQ(row.substr(0, row.find(':')), absl::StrCat(cut.bits));
      ++moved;
    }
    EXPECT_NEAR(again.manifest->bands[bands - 1].threshold, expected.threshold,
                std::abs(expected.threshold) / 2048);
    EXPECT_NEAR(again.manifest->bands[bands - 1].score_mass, expected.score_mass,
                2e-3 * expected.score_mass);
  }
  EXPECT_GT(moved, 0);   // 3,600 scores over 9 units share fp16 values: the case is not empty ...
  EXPECT_LT(moved, 40);  // ... and rare.
}

TEST(RebandingTest, TwiceIsNoWorseThanOnce) {
  for (const Shape& shape : Shapes()) {
    const CompressedObject object = Context(shape).Pack(Edges("0.3,1"));
    const CompressedObject once = Reband(Whole(object), Edges("0.05,0.2,0.3,0.7,1"));
    const CompressedObject twice = Reband(Whole(once), Edges("0.05,0.1,0.2,0.3,0.7,1"));
    const CompressedObject direct = Reband(Whole(object), Edges("0.05,0.1,0.2,0.3,0.7,1"));
    for (uint32_t bands = 1; bands <= 6; ++bands) {
      EXPECT_EQ(RowsOf(twice, bands), RowsOf(direct, bands)) << bands;
    }
  }
}

TEST(RebandingTest, MassOfStoredBandsIsConserved) {
  const CompressedObject object = Context(Shape{}).Pack(Edges("0.3,1"));
  const CompressedObject again = Reband(Whole(object), Edges("0.1,0.2,0.3,0.5,1"));
  const auto mass = [](const CompressedObject& o, size_t begin, size_t end) {
    double sum = 0;
    for (size_t b = begin; b < end; ++b) sum += o.manifest->bands[b].score_mass;
    return sum;
  };
  EXPECT_NEAR(mass(again, 0, 3), mass(object, 0, 1), 1e-12 * mass(object, 0, 1));
  EXPECT_NEAR(mass(again, 3, 5), mass(object, 1, 2), 1e-12 * mass(object, 1, 2));
}

TEST(RebandingTest, APartGoesUpToItsHighestEdge) {
  for (const Shape& shape : Shapes()) {
    const CompressedObject object = Context(shape).Pack(BandEdges::Default());
    const CompressedObject part = Reband(Prefix(object, 4), Edges("0.25,0.4"));
    ExpectIntact(part);
    EXPECT_EQ(part.manifest->bands.back().edge, R(0.4));
    EXPECT_EQ(RowsOf(part, 2), RowsOf(object, 4));
    const CompressedObject whole = Reband(Whole(object), Edges("0.25,0.4"));
    EXPECT_EQ(RowsOf(whole, 1), RowsOf(part, 1));
    EXPECT_THAT(Rebander::Create(Prefix(object, 4))->Plan(Edges("0.25,0.41")),
                StatusIs(kInvalid, HasSubstr("end at 0.41, the bands that are here at 0.4")));
  }
}

TEST(RebandingTest, RandomEdgesNestAndEqualTheTwin) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  for (int trial = 0; trial < 60; ++trial) {
    Shape shape = Shapes()[random() % Shapes().size()];
    shape.seed = random();
    const auto random_edges = [&] {
      std::set<uint32_t> edges = {Ratio::kOne};
      for (uint64_t i = RandomUniform(random, 0, 7); i > 0; --i) {
        edges.insert(static_cast<uint32_t>(RandomUniform(random, 1, Ratio::kOne)));
      }
      std::vector<Ratio> list;
      for (const uint32_t edge : edges) list.push_back(Ratio::FromMillionths(edge).value());
      return BandEdges::Create(list).value();
    };
    const CompressedObject object = Context(shape).Pack(random_edges());
    const CompressedObject again = Reband(Whole(object), random_edges());
    ExpectIntact(again);
    EXPECT_EQ(RowsOf(again, static_cast<uint32_t>(again.manifest->bands.size())),
              RowsOf(object, static_cast<uint32_t>(object.manifest->bands.size())));
  }
}

TEST(RebandingTest, ABudgetIsMetAndOneMorePairWouldNotFit) {
  for (const Shape& shape : Shapes()) {
    const CompressedObject object = Context(shape).Pack(BandEdges::Default());
    const Manifest& m = *object.manifest;
    KVTIER_ASSERT_OK_AND_ASSIGN(const Rebander rebander, Rebander::Create(Whole(object)));
    KVTIER_ASSERT_OK_AND_ASSIGN(const RebandPlan least, rebander.Plan(Edges("0.000001")));
    KVTIER_ASSERT_OK_AND_ASSIGN(const RebandPlan most, rebander.Plan(Edges("1")));
    for (const double share : {0.0, 0.1, 0.37, 0.5, 0.99, 1.0, 2.0}) {
      const uint64_t budget =
          least.PrefixBytes(1) +
          static_cast<uint64_t>(share *
                                static_cast<double>(most.PrefixBytes(1) - least.PrefixBytes(1)));
      KVTIER_ASSERT_OK_AND_ASSIGN(const RebandPlan plan, rebander.PlanWithin(budget));
      EXPECT_LE(plan.PrefixBytes(1), budget);
      KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject packed, rebander.Pack(plan));
      ExpectIntact(packed);
      EXPECT_EQ(packed.manifest->PrefixBytes(1), plan.PrefixBytes(1));
      EXPECT_EQ(packed.manifest->bands.back().edge, Ratio());
      if (plan.edges.size() == 1) {
        EXPECT_EQ(plan.PrefixBytes(1), most.PrefixBytes(1));
        continue;
      }
      // Fewer than a million pairs: each is a ratio of its own.
      const uint64_t pairs = m.RankEnd(plan.edges[0]);
      uint32_t next = plan.edges[0].millionths();
      while (m.RankEnd(Ratio::FromMillionths(next).value()) == pairs) ++next;
      const Ratio one_more = Ratio::FromMillionths(next).value();
      ASSERT_EQ(m.RankEnd(one_more), pairs + 1);
      EXPECT_GT(rebander.Plan(BandEdges::CreateTruncated({&one_more, 1}).value())->PrefixBytes(1),
                budget);
    }
    if (least.PrefixBytes(1) == 0) continue;
    EXPECT_THAT(rebander.PlanWithin(least.PrefixBytes(1) - 1),
                StatusIs(kInvalid, HasSubstr(absl::StrCat(least.PrefixBytes(1), " bytes"))));
  }
}

// Rows per head of one band, [layers][heads], without the protected ones.
std::vector<std::vector<uint64_t>> Counts(const CompressedObject& object) {
  const Manifest& m = *object.manifest;
  std::vector<std::vector<uint64_t>> counts;
  for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
    if (m.geometry.layers[l] != LayerKind::kGlobal) continue;
    counts.emplace_back();
    for (const HeadEntry& head : m.segment(BandIndex(0), LayerIndex(l)).heads) {
      counts.back().push_back(head.rows - m.system_tokens);
    }
  }
  return counts;
}

CompressedObject CutRectangle(const StoredBands& stored, double ratio, Rectangle of) {
  const absl::StatusOr<Rebander> rebander = Rebander::Create(stored);
  EXPECT_THAT(rebander, IsOk());
  const absl::StatusOr<RebandPlan> plan = rebander->PlanRectangle(R(ratio), of);
  EXPECT_THAT(plan, IsOk());
  absl::StatusOr<CompressedObject> object = rebander->Pack(*plan);
  EXPECT_THAT(object, IsOk());
  EXPECT_EQ(object->manifest->total_bytes(), plan->PrefixBytes(1));
  ExpectIntact(*object);
  return *std::move(object);
}

TEST(RectangleTest, OfTheObjectHasTheBestRowsOfEveryHead) {
  for (const Shape& shape : Shapes()) {
    const Context context(shape);
    const CompressedObject object = context.Pack(BandEdges::Default());
    for (const double ratio : {0.07, 0.3, 1.0}) {
      const CompressedObject rectangle = CutRectangle(Whole(object), ratio, Rectangle::kObject);
      const uint64_t rows = R(ratio).Of(shape.context_tokens);
      for (const auto& layer : Counts(rectangle)) {
        for (const uint64_t count : layer) EXPECT_EQ(count, rows);
      }
      EXPECT_EQ(rectangle.manifest->recipe, "kvzip/1;rect=object");
      EXPECT_EQ(rectangle.manifest->key,
                DeriveKey(object.manifest->key, "kvzip/1;rect=object").value());
      EXPECT_TRUE(rectangle.manifest->last_block_hash.IsZero());
      EXPECT_TRUE(Includes(RowsOf(object, 6), RowsOf(rectangle, 1)));
    }
  }
}

TEST(RectangleTest, OfALayerSharesTheRowsOutByScore) {
  Shape shape = {.layers = {LayerKind::kGlobal, LayerKind::kGlobal}, .kv_heads = 2};
  const CompressedObject object = Context(shape).Pack(BandEdges::Default());
  for (const double ratio : {0.01, 0.3, 0.77, 1.0}) {
    const CompressedObject rectangle = CutRectangle(Whole(object), ratio, Rectangle::kLayer);
    const auto counts = Counts(rectangle);
    uint64_t slabs = 0;
    for (const auto& layer : counts) {
      EXPECT_EQ(layer[0], layer[1]);
      slabs += layer[0];
    }
    EXPECT_EQ(slabs, R(ratio).Of(2 * shape.context_tokens));
  }
}

// A layer whose scores are all better gets all of the rows.
TEST(RectangleTest, OfALayerGivesMoreToTheLayerThatHasMore) {
  ObjectShape shape = TinyShape();
  shape.context_tokens = 40;
  shape.edges = Edges("0.5,1");
  CompressedObject object = MakeRandomObject(shape);
  const CompressedObject even = CutRectangle(Whole(object), 0.5, Rectangle::kObject);
  const CompressedObject by_layer = CutRectangle(Whole(object), 0.5, Rectangle::kLayer);
  const auto mass = [](const CompressedObject& o) { return o.manifest->bands[0].score_mass; };
  EXPECT_GE(mass(by_layer), mass(even));
  EXPECT_LE(mass(by_layer), object.manifest->bands[0].score_mass);
}

// The search counts bytes by the order that the recipe cuts; the plan's bands must be those.
void ExpectBudgetsMet(const CompressedObject& object) {
  const absl::StatusOr<Rebander> rebander = Rebander::Create(Whole(object));
  KVTIER_ASSERT_OK(rebander);
  const auto bytes_at = [&](uint32_t millionths) {
    const Ratio ratio = Ratio::FromMillionths(millionths).value();
    return rebander->Plan(BandEdges::CreateTruncated({&ratio, 1}).value())->PrefixBytes(1);
  };
  const uint64_t least = bytes_at(1);
  const uint64_t most = bytes_at(Ratio::kOne);
  ASSERT_LT(least, most);
  for (const double share : {0.2, 0.5, 0.8}) {
    const uint64_t budget =
        least + static_cast<uint64_t>(share * static_cast<double>(most - least));
    KVTIER_ASSERT_OK_AND_ASSIGN(const RebandPlan plan, rebander->PlanWithin(budget));
    ASSERT_EQ(plan.edges.size(), 2u);
    EXPECT_LE(plan.PrefixBytes(1), budget);
    EXPECT_EQ(plan.PrefixBytes(1), bytes_at(plan.edges[0].millionths()));
    EXPECT_GT(bytes_at(plan.edges[0].millionths() + 1), budget);
  }
}

TEST(RebandingTest, ABudgetIsMetUnderEveryRecipe) {
  for (const char* recipe :
       {"kvzip/1", "uniform/1", "kvpress/1", "kvzip/1;codec=int4", "uniform/1;codec=int8"}) {
    SCOPED_TRACE(recipe);
    ObjectShape shape = TinyShape();
    shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding, LayerKind::kGlobal};
    shape.context_tokens = 50;
    shape.window = 9;
    shape.edges = BandEdges::Default();
    shape.recipe = recipe;
    ExpectBudgetsMet(MakeRandomObject(shape));
  }
  const CompressedObject object = Context(Shape{}).Pack(BandEdges::Default());
  for (const Rectangle of : {Rectangle::kLayer, Rectangle::kObject}) {
    SCOPED_TRACE(static_cast<int>(of));
    ExpectBudgetsMet(CutRectangle(Whole(object), 1.0, of));
  }
}

TEST(RectangleTest, RefusesWhatThePartDoesNotHave) {
  const CompressedObject object = Context(Shape{}).Pack(BandEdges::Default());
  KVTIER_ASSERT_OK_AND_ASSIGN(const Rebander part, Rebander::Create(Prefix(object, 3)));
  EXPECT_THAT(part.PlanRectangle(R(0.9), Rectangle::kObject),
              StatusIs(kInvalid, HasSubstr("would need its best 81 rows")));
  EXPECT_THAT(part.PlanRectangle(R(0.9), Rectangle::kLayer),
              StatusIs(kInvalid, HasSubstr("to ratio 0.3")));
  EXPECT_THAT(part.PlanRectangle(R(0.1), Rectangle::kNone), StatusIs(kInvalid, HasSubstr("what")));
  // What it does have is what the whole object has.
  for (const Rectangle of : {Rectangle::kLayer, Rectangle::kObject}) {
    EXPECT_EQ(RowsOf(CutRectangle(Prefix(object, 3), 0.1, of), 1),
              RowsOf(CutRectangle(Whole(object), 0.1, of), 1));
  }
}

TEST(RectangleTest, OfARectangleIsRefusedAndItsEdgesCanBeCutAgain) {
  const CompressedObject object = Context(Shape{}).Pack(BandEdges::Default());
  for (const Rectangle of : {Rectangle::kLayer, Rectangle::kObject}) {
    const CompressedObject rectangle = CutRectangle(Whole(object), 0.4, of);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Rebander rebander, Rebander::Create(Whole(rectangle)));
    EXPECT_THAT(rebander.PlanRectangle(R(0.1), of), StatusIs(kInvalid, HasSubstr("rect=")));
    KVTIER_ASSERT_OK_AND_ASSIGN(const RebandPlan plan, rebander.Plan(Edges("0.1,0.4")));
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject banded, rebander.Pack(plan));
    ExpectIntact(banded);
    EXPECT_EQ(RowsOf(banded, 2), RowsOf(rectangle, 1));
    EXPECT_EQ(RowsOf(banded, 1), RowsOf(CutRectangle(Whole(object), 0.1, of), 1));
  }
}

TEST(RebandingTest, FidelityStaysWhereTheEdgeStays) {
  CompressedObject object = Context(Shape{}).Pack(Edges("0.2,0.5,1"));
  Manifest measured = *object.manifest;
  measured.fidelity = Fidelity{2, 80, {40, 60, 79}};
  object.manifest = std::make_shared<const Manifest>(measured);
  const CompressedObject again = Reband(Whole(object), Edges("0.1,0.5,0.7,1"));
  EXPECT_EQ(again.manifest->fidelity, (Fidelity{2, 80, {std::nullopt, 60, std::nullopt, 79}}));
  EXPECT_EQ(Reband(Whole(object), Edges("0.1,0.7")).manifest->fidelity, std::nullopt);
  EXPECT_EQ(CutRectangle(Whole(object), 0.5, Rectangle::kLayer).manifest->fidelity, std::nullopt);
  ExpectSameObject(object, Reband(Whole(object), Edges("0.2,0.5,1")));
}

TEST(RebandingTest, RefusesSegmentsThatAreNotTheObjects) {
  const CompressedObject object = Context(Shape{}).Pack(BandEdges::Default());
  StoredBands few = Whole(object);
  few.segments.pop_back();
  EXPECT_THAT(Rebander::Create(few), StatusIs(kInvalid, HasSubstr("17 segments")));
  StoredBands none = Prefix(object, 0);
  EXPECT_THAT(Rebander::Create(none), StatusIs(kInvalid));
  EXPECT_THAT(Rebander::Create({}), StatusIs(kInvalid, HasSubstr("no manifest")));
  StoredBands damaged = Whole(object);
  AlignedBytes bytes = AlignedBytes::Copy(damaged.segments[2].bytes());
  bytes.data()[70] ^= std::byte{1};
  damaged.segments[2] = SegmentRef::Own(std::move(bytes));
  EXPECT_THAT(Rebander::Create(damaged), StatusIs(absl::StatusCode::kDataLoss));
  StoredBands swapped = Whole(object);
  std::swap(swapped.segments[0], swapped.segments[3]);
  EXPECT_THAT(Rebander::Create(swapped), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace kvtier
