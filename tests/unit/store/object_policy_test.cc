#include "store/object_policy.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "base/simulated_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/object_value.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ObjectPtr = ObjectPolicy::ObjectPtr;
using testing::DoubleEq;
using testing::ElementsAre;

Ratio RatioOf(double value) { return *Ratio::FromDouble(value); }

// --- object_value.h ------------------------------------------------------------------------------

Manifest ManifestOf(const char* edges, uint32_t tokens = 60) {
  return *MakeTestObject({.context_tokens = tokens, .edges = edges}).manifest;
}

TEST(ObjectValueTest, TheFloorIsTheFirstEdgeThatReachesIt) {
  const Manifest manifest = ManifestOf("0.1,0.2,0.5,1");
  EXPECT_EQ(FloorBands(manifest, RatioOf(0.05)), 1u);
  EXPECT_EQ(FloorBands(manifest, RatioOf(0.1)), 1u);
  EXPECT_EQ(FloorBands(manifest, RatioOf(0.100001)), 2u);
  EXPECT_EQ(FloorBands(manifest, RatioOf(1)), 4u);
  Manifest ends_early = manifest;
  ends_early.bands.resize(2);
  EXPECT_EQ(FloorBands(ends_early, RatioOf(0.3)), 2u) << "it goes whole";
}

TEST(ObjectValueTest, QualityIsFidelityElseScoreMassElseBytes) {
  Manifest manifest = ManifestOf("0.1,0.3,1");
  const double masses[] = {6, 3, 1};
  for (size_t band = 0; band < 3; ++band) manifest.bands[band].score_mass = masses[band];
  EXPECT_THAT(PrefixQualities(manifest), ElementsAre(DoubleEq(0.6), DoubleEq(0.9), DoubleEq(1)));
  manifest.fidelity = Fidelity{.chunks = 1, .tokens = 100, .correct = {50, 45, 99}};
  EXPECT_THAT(PrefixQualities(manifest), ElementsAre(DoubleEq(0.5), DoubleEq(0.5), DoubleEq(0.99)));
  manifest.fidelity->correct[1] = std::nullopt;  // Not measured at every edge.
  EXPECT_THAT(PrefixQualities(manifest), ElementsAre(DoubleEq(0.6), DoubleEq(0.9), DoubleEq(1)));
  for (BandEntry& band : manifest.bands) band.score_mass = 0;
  const std::vector<double> by_bytes = PrefixQualities(manifest);
  EXPECT_DOUBLE_EQ(by_bytes[0], static_cast<double>(manifest.PrefixBytes(1)) /
                                    static_cast<double>(manifest.total_bytes()));
  EXPECT_DOUBLE_EQ(by_bytes[2], 1);
}

TEST(ObjectValueTest, WhatASenderClaimsCannotBreakIt) {
  Manifest manifest = ManifestOf("0.1,0.3,1");
  for (const double mass : {std::numeric_limits<double>::infinity(), -1.0, std::nan(""), 1e308}) {
    for (BandEntry& band : manifest.bands) band.score_mass = mass;
    double below = 0;
    for (const double quality : PrefixQualities(manifest)) {
      EXPECT_GE(quality, below);
      EXPECT_LE(quality, 1);
      below = quality;
    }
  }
}

TEST(ObjectValueTest, CostGrowsFasterThanLength) {
  const double one = RecomputeCost(ManifestOf("1", 1000)),
               two = RecomputeCost(ManifestOf("1", 2000));
  EXPECT_GT(two, 2 * one);
  EXPECT_LT(two, 2.2 * one);
}

// --- ObjectPolicy --------------------------------------------------------------------------------

ObjectPtr StateOf(uint64_t seed, uint64_t upload_seed = 0, const char* tenant = "t") {
  const auto manifest =
      MakeTestObject({.edges = "0.1,0.3,0.6,1", .seed = seed, .upload_seed = upload_seed}).manifest;
  return std::make_shared<ObjectState>(*TenantId::FromString(tenant), manifest, absl::Time(),
                                       Durability::kDisk, 4);
}

class ObjectPolicyTest : public testing::Test {
 protected:
  void Hold(const ObjectPtr& object, uint32_t bands) {
    clock_.AdvanceTime(absl::Seconds(10));
    policy_.Hold(object, bands);
  }
  ObjectPtr Next() {
    return policy_.Next([](const ObjectPtr&) { return true; });
  }

  SimulatedClock clock_;
  ObjectPolicy policy_{MakeLruPolicy(clock_), RatioOf(0.2)};
  const ObjectPtr a_ = StateOf(1), b_ = StateOf(2);
};

TEST_F(ObjectPolicyTest, ObjectsShrinkToTheFloorAndGo) {
  Hold(a_, 4);
  EXPECT_EQ(policy_.Below(*a_, 4), 3u);
  EXPECT_EQ(policy_.Below(*a_, 3), 2u);
  EXPECT_EQ(policy_.Below(*a_, 2), 0u);
  EXPECT_EQ(policy_.Below(*a_, 1), 0u);
  EXPECT_EQ(Next(), a_);
  Hold(a_, 2);
  EXPECT_EQ(policy_.held_bands(*a_), 2u);
  Hold(a_, 0);
  EXPECT_EQ(policy_.held_count(), 0u);
  EXPECT_EQ(Next(), nullptr);
}

TEST_F(ObjectPolicyTest, WithoutAFloorEveryBandMayGo) {
  ObjectPolicy policy(MakeLruPolicy(clock_), std::nullopt);
  EXPECT_EQ(policy.Below(*a_, 2), 1u);
  EXPECT_EQ(policy.Below(*a_, 1), 0u);
}

TEST_F(ObjectPolicyTest, UseAndRefusalChangeWhoIsNext) {
  Hold(a_, 4);
  Hold(b_, 4);
  clock_.AdvanceTime(absl::Hours(1));
  policy_.Use(a_->tenant, a_->manifest->key, a_.get());
  EXPECT_EQ(Next(), b_);
  EXPECT_EQ(policy_.Next([&](const ObjectPtr& object) { return object != b_; }), a_);
  policy_.Remove(b_);
  EXPECT_EQ(Next(), a_);
}

TEST_F(ObjectPolicyTest, AnotherUploadOfTheKeyTakesItsPlace) {
  Hold(a_, 2);
  const ObjectPtr again = StateOf(1, 1);
  Hold(a_, 0);
  Hold(again, 4);
  EXPECT_EQ(policy_.held_bands(*a_), 0u);
  EXPECT_EQ(policy_.held_bands(*again), 4u);
  EXPECT_EQ(Next(), again);
}

// Who is held is told apart by name, whatever the hash says.
TEST_F(ObjectPolicyTest, NamesThatHashAlikeAreKeptApart) {
  ObjectPolicy policy(MakeLruPolicy(clock_), RatioOf(0.2),
                      [](const TenantId&, const Key&) { return ~uint64_t{0}; });
  const auto hold = [&](const ObjectPtr& object, uint32_t bands) {
    clock_.AdvanceTime(absl::Hours(1));
    policy.Hold(object, bands);
  };
  const auto next = [&] { return policy.Next([](const ObjectPtr&) { return true; }); };
  const ObjectPtr c = StateOf(3);
  hold(a_, 4);
  hold(b_, 3);
  hold(c, 2);
  EXPECT_EQ(policy.held_count(), 3u);
  EXPECT_EQ(policy.held_bands(*a_), 4u);
  EXPECT_EQ(policy.held_bands(*b_), 3u);
  EXPECT_EQ(policy.held_bands(*c), 2u);
  EXPECT_EQ(next(), a_);
  // Whose id was free first goes; the others are found all the same.
  hold(a_, 0);
  EXPECT_EQ(policy.held_bands(*b_), 3u);
  EXPECT_EQ(next(), b_);
  clock_.AdvanceTime(absl::Hours(1));
  policy.Use(b_->tenant, b_->manifest->key, b_.get());
  EXPECT_EQ(next(), c);
  hold(a_, 4);
  policy.Remove(c);
  EXPECT_EQ(policy.held_count(), 2u);
  EXPECT_EQ(policy.held_bands(*a_), 4u);
  EXPECT_EQ(next(), b_);
  hold(b_, 0);
  hold(a_, 0);
  EXPECT_EQ(policy.held_count(), 0u);
  EXPECT_EQ(next(), nullptr);
}

TEST_F(ObjectPolicyTest, TheHashCoversAllOfANameAndNobodyKnowsItsSeed) {
  const ObjectPolicy::Hash hash = ObjectPolicy::RandomHash(), other = ObjectPolicy::RandomHash();
  const Key& key = a_->manifest->key;
  std::array<std::byte, Key::kSize> bytes;
  std::memcpy(bytes.data(), key.bytes().data(), bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::array<std::byte, Key::kSize> changed = bytes;
    changed[i] ^= std::byte{1};
    EXPECT_NE(hash(a_->tenant, Key(changed)), hash(a_->tenant, key)) << "byte " << i;
  }
  EXPECT_NE(hash(*TenantId::FromString("u"), key), hash(a_->tenant, key));
  EXPECT_EQ(hash(a_->tenant, key), hash(a_->tenant, key));
  EXPECT_NE(hash(a_->tenant, key), other(a_->tenant, key));
}

// What the store tells of an object's prefix reaches the policy, under the id that the prefix has.
TEST_F(ObjectPolicyTest, ThePolicyHearsWhatAnObjectExtends) {
  struct Heard {
    std::vector<EvictionObject> inserted;
  } heard;
  class Recorder final : public EvictionPolicy {
   public:
    explicit Recorder(Heard& heard) : heard_(heard) {}
    uint32_t Admit(const EvictionObject&, std::optional<EvictionId>) override { return 0; }
    void Insert(const EvictionObject& object, uint32_t) override {
      heard_.inserted.push_back(object);
    }
    void Access(EvictionId) override {}
    bool Miss(EvictionId) override { return false; }
    void Shrink(EvictionId, uint32_t) override {}
    void Remove(EvictionId) override {}
    std::optional<EvictionVictim> Next(absl::FunctionRef<bool(EvictionId)>) override {
      return std::nullopt;
    }
    size_t present_count() const override { return 0; }
    size_t remembered_count() const override { return 0; }

   private:
    Heard& heard_;
  };
  ObjectPolicy policy(std::make_unique<Recorder>(heard), RatioOf(0.2));
  b_->extends = a_->manifest->key;
  policy.Hold(a_, 4);
  policy.Hold(b_, 4);
  ASSERT_EQ(heard.inserted.size(), 2u);
  EXPECT_EQ(heard.inserted[0].extends, std::nullopt);
  EXPECT_EQ(heard.inserted[1].extends, heard.inserted[0].id);
}

TEST_F(ObjectPolicyTest, TenantsMayShareAKey) {
  const ObjectPtr other = StateOf(1, 0, "u");
  Hold(a_, 4);
  Hold(other, 4);
  clock_.AdvanceTime(absl::Hours(1));
  policy_.Use(other->tenant, other->manifest->key, other.get());
  EXPECT_EQ(Next(), a_);
}

}  // namespace
}  // namespace kvtier
