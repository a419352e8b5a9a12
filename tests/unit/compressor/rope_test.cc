#include "compressor/rope.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"

namespace kvtier {
namespace {

using nlohmann::json;

float FromHex(const std::string& bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(std::stoul(bits, nullptr, 16)));
}

// The settings of rope.json, which transformers computed.
json ReadGolden() {
  std::ifstream in(SourcePath("tests/golden/rope.json"));
  return json::parse(in);
}

RopeSpec SpecOf(const json& setting) {
  const json& rope = setting["rope"];
  const std::string kind = rope["rope_type"];
  RopeSpec spec;
  spec.theta = rope["rope_theta"];
  spec.factor = rope.value("factor", 1.0);
  spec.original_positions = rope.value("original_max_position_embeddings",
                                       setting["max_position_embeddings"].get<int64_t>());
  if (kind == "linear") spec.kind = RopeKind::kLinear;
  if (kind == "llama3") {
    spec.kind = RopeKind::kLlama3;
    spec.low_frequency_factor = rope["low_freq_factor"];
    spec.high_frequency_factor = rope["high_freq_factor"];
  }
  if (kind == "yarn") {
    spec.kind = RopeKind::kYarn;
    spec.beta_fast = rope.value("beta_fast", 32.0);
    spec.beta_slow = rope.value("beta_slow", 1.0);
    spec.truncate = rope.value("truncate", true);
    spec.attention_factor =
        rope.value("attention_factor", YarnAttentionFactor(spec.factor, rope.value("mscale", 0.0),
                                                           rope.value("mscale_all_dim", 0.0)));
  }
  return spec;
}

int64_t UlpsApart(float a, float b) {
  return std::abs(int64_t{std::bit_cast<int32_t>(a)} - std::bit_cast<int32_t>(b));
}

TEST(RopeTest, FrequenciesAreWithinOneUnitOfTransformers) {
  const json golden = ReadGolden();
  ASSERT_GE(golden["settings"].size(), 10u);
  std::set<std::string> kinds;
  int64_t entries = 0;
  int64_t differing = 0;
  for (const json& setting : golden["settings"]) {
    SCOPED_TRACE(setting["name"].get<std::string>());
    kinds.insert(setting["rope"]["rope_type"]);
    const RopeTable table = SpecOf(setting).MakeTable(setting["head_dim"]);
    const json& expected = setting["inverse_frequencies"];
    ASSERT_EQ(table.inverse_frequencies.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const int64_t apart = UlpsApart(table.inverse_frequencies[i], FromHex(expected[i]));
      EXPECT_LE(apart, 1) << "pair " << i;
      ++entries;
      differing += apart != 0;
    }
    EXPECT_NEAR(table.attention_scaling, setting["attention_scaling"].get<double>(), 1e-6);
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"default", "linear", "llama3", "yarn"}));
  std::printf("%lld of %lld frequencies differ from the golden ones, by one unit each\n",
              static_cast<long long>(differing), static_cast<long long>(entries));
  EXPECT_LT(differing, entries / 10);
}

// A frequency that is off by one unit in the last place turns a key by position x that unit, and
// the product of position and frequency is rounded once more.
TEST(RopeTest, RotationsStayWithinThatBoundUpToPosition131071) {
  const json golden = ReadGolden();
  const auto backend = MakeCpuBackend({});
  bool far = false;
  for (const json& setting : golden["settings"]) {
    SCOPED_TRACE(setting["name"].get<std::string>());
    const RopeTable table = SpecOf(setting).MakeTable(setting["head_dim"]);
    const size_t half = table.inverse_frequencies.size();
    for (const json& row : setting["rows"]) {
      const int64_t position = row["position"];
      far = far || position == 131071;
      // The key (1, 0) of every pair becomes (cos, sin).
      KVTIER_ASSERT_OK_AND_ASSIGN(Tensor key, backend->Allocate(DType::kF32, 1, 2 * half));
      float* values = static_cast<float*>(key.data());
      std::fill_n(values, half, 1.0f);
      std::fill_n(values + half, half, 0.0f);
      KVTIER_ASSERT_OK(backend->Rope(key, 1, table, position));
      for (size_t i = 0; i < half; ++i) {
        const double frequency = table.inverse_frequencies[i];
        const double ulp = std::nextafter(table.inverse_frequencies[i], 1e30f) - frequency;
        const double angle = static_cast<double>(position) * frequency;
        const double bound =
            table.attention_scaling * (static_cast<double>(position) * ulp + angle * 0x1p-23) +
            2e-7;
        ASSERT_NEAR(values[i], FromHex(row["cos"][i]), bound) << position << " pair " << i;
        ASSERT_NEAR(values[half + i], FromHex(row["sin"][i]), bound) << position << " pair " << i;
      }
    }
  }
  EXPECT_TRUE(far);
}

TEST(RopeTest, FingerprintNamesEveryParameterThatCounts) {
  EXPECT_EQ(RopeSpec().Fingerprint(64), "rope/1 rotation=half type=default theta=10000 dims=64");
  std::set<std::string> texts;
  size_t specs = 0;
  const auto add = [&](RopeSpec spec, int64_t head_dim = 64) {
    texts.insert(spec.Fingerprint(head_dim));
    ++specs;
  };
  add({});
  add({}, 128);
  add({.theta = std::nextafter(10000.0, 20000.0)});
  for (RopeKind kind : {RopeKind::kLinear, RopeKind::kLlama3, RopeKind::kYarn}) {
    const RopeSpec base{.kind = kind, .factor = 4, .original_positions = 4096};
    add(base);
    RopeSpec changed = base;
    changed.factor = 8;
    add(changed);
    if (kind == RopeKind::kLinear) continue;
    changed = base;
    changed.original_positions = 8192;
    add(changed);
    for (double RopeSpec::*field :
         kind == RopeKind::kLlama3
             ? std::vector<double RopeSpec::*>{&RopeSpec::low_frequency_factor,
                                               &RopeSpec::high_frequency_factor}
             : std::vector<double RopeSpec::*>{&RopeSpec::beta_fast, &RopeSpec::beta_slow,
                                               &RopeSpec::attention_factor}) {
      changed = base;
      changed.*field = 2.5;
      add(changed);
    }
    if (kind == RopeKind::kYarn) {
      changed = base;
      changed.truncate = false;
      add(changed);
    }
  }
  EXPECT_EQ(texts.size(), specs);
}

}  // namespace
}  // namespace kvtier
