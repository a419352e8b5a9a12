#include "tests/conformance/device_ranking_conformance.h"

#include <algorithm>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "compressor/rule_ranking.h"
#include "cuda/device_ranking.h"
#include "cuda/device_scores.h"
#include "cuda/sort_pairs.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

std::vector<uint32_t> RandomKeys(std::mt19937_64& random, int64_t count, int bits) {
  std::vector<uint32_t> pool(static_cast<size_t>(count / 3 + 1));
  for (uint32_t& key : pool) {
    key = static_cast<uint32_t>(random() & ((uint64_t{1} << bits) - 1));
  }
  std::vector<uint32_t> keys(static_cast<size_t>(count));
  for (uint32_t& key : keys) key = pool[random() % pool.size()];
  return keys;
}

// Sorts on the device, in place.
absl::Status SortOnDevice(const std::shared_ptr<Device>& device, int bits,
                          std::vector<uint32_t>& keys, std::vector<uint32_t>& values) {
  const uint64_t bytes = keys.size() * sizeof(uint32_t);
  KVTIER_RETURN_IF_ERROR(device->Enter());
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory k,
                          DeviceMemory::Of(device, std::span<const uint32_t>(keys)));
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory v,
                          DeviceMemory::Of(device, std::span<const uint32_t>(values)));
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory spare_k, DeviceMemory::Allocate(device, bytes));
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory spare_v, DeviceMemory::Allocate(device, bytes));
  SortPairsParams params{.keys = k.as<uint32_t>(),
                         .values = v.as<uint32_t>(),
                         .spare_keys = spare_k.as<uint32_t>(),
                         .spare_values = spare_v.as<uint32_t>(),
                         .count = static_cast<int64_t>(keys.size()),
                         .bits = bits};
  KVTIER_RETURN_IF_ERROR(
      device->Check(SortPairsScratch(params, params.scratch_bytes), "sizes of a sort"));
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory scratch,
                          DeviceMemory::Allocate(device, params.scratch_bytes));
  params.scratch = scratch.as<void>();
  KVTIER_RETURN_IF_ERROR(device->Check(LaunchSortPairs(params, device->stream()), "sort"));
  KVTIER_RETURN_IF_ERROR(device->CopyOut(params.keys, keys.data(), bytes));
  KVTIER_RETURN_IF_ERROR(device->CopyOut(params.values, values.data(), bytes));
  return device->Synchronize();
}

// The tokens of each row and band, one group behind the other, and where each starts.
struct Groups {
  std::vector<uint32_t> tokens;
  std::vector<uint32_t> starts;
};

Groups GroupsOf(const ScoreTable& scores, const BandAssignment& assignment) {
  const size_t bands = assignment.thresholds.size();
  Groups groups;
  for (uint64_t row = 0; row < uint64_t{scores.layers} * scores.kv_heads; ++row) {
    for (size_t band = 0; band < bands; ++band) {
      groups.starts.push_back(static_cast<uint32_t>(groups.tokens.size()));
      for (uint64_t t = 0; t < scores.tokens; ++t) {
        if (assignment.band[row * scores.tokens + t] == band) {
          groups.tokens.push_back(static_cast<uint32_t>(t));
        }
      }
    }
  }
  groups.starts.push_back(static_cast<uint32_t>(groups.tokens.size()));
  return groups;
}

}  // namespace

void ExpectSortsStably(const std::shared_ptr<Device>& device, int64_t count, int bits) {
  SCOPED_TRACE(absl::StrCat(count, " pairs, ", bits, " bits"));
  std::mt19937_64 random(TestSeed());
  std::vector<uint32_t> keys = RandomKeys(random, count, bits);
  std::vector<std::pair<uint32_t, uint32_t>> expected;
  std::vector<uint32_t> values;
  for (uint32_t i = 0; i < keys.size(); ++i) {
    values.push_back(i * 3);
    expected.emplace_back(keys[i], values[i]);
  }
  std::stable_sort(expected.begin(), expected.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  KVTIER_ASSERT_OK(SortOnDevice(device, bits, keys, values));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(std::pair(keys[i], values[i]), expected[i]) << "place " << i;
  }
}

ScoreTable RandomScoreTable(uint32_t layers, uint32_t kv_heads, uint64_t tokens) {
  std::mt19937_64 random(TestSeed());
  ScoreTable scores = ScoreTable::Create(layers, kv_heads, tokens);
  for (float& score : scores.log_scores) score = -static_cast<float>(random() % 5000) / 512;
  return scores;
}

void ExpectRanksAsTheHost(const std::shared_ptr<Device>& device, const ScoreTable& scores,
                          SelectionRule rule) {
  SCOPED_TRACE(absl::StrCat("rule ", static_cast<int>(rule), ", ", scores.pairs(), " pairs"));
  const BandEdges edges = BandEdges::Default();
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment host,
                              AssignBandsByRule(scores, edges, rule, /*system_prompt=*/false));
  const Groups expected = GroupsOf(scores, host);
  KVTIER_ASSERT_OK(device->Enter());
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto placed,
      MakeDeviceScores(
          device, {.layers = scores.layers, .kv_heads = scores.kv_heads, .tokens = scores.tokens}));
  KVTIER_ASSERT_OK(placed->Write(scores));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const DeviceRanking here,
      RankOnDevice({.scores = placed.get(), .edges = &edges, .rule = rule, .system_prompt = false},
                   device));
  EXPECT_EQ(here.counts.thresholds, host.thresholds);
  ASSERT_EQ(here.counts.score_mass.size(), host.score_mass.size());
  for (size_t b = 0; b < host.score_mass.size(); ++b) {
    EXPECT_NEAR(here.counts.score_mass[b], host.score_mass[b], 1e-9 * (1 + host.score_mass[b]))
        << "band " << b;
  }
  ASSERT_TRUE(here.starts == expected.starts);
  std::vector<uint32_t> tokens(scores.pairs());
  KVTIER_ASSERT_OK(
      device->CopyOut(here.tokens.as<void>(), tokens.data(), tokens.size() * sizeof(uint32_t)));
  const auto [a, b] = std::mismatch(tokens.begin(), tokens.end(), expected.tokens.begin());
  EXPECT_EQ(a, tokens.end()) << "place " << a - tokens.begin();
}

}  // namespace kvtier
