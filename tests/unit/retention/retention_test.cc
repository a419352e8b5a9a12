#include <algorithm>
#include <fstream>
#include <list>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "bench/retention/quality_curve.h"
#include "bench/retention/replay.h"
#include "bench/retention/request_trace.h"
#include "bench/retention/sweep.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"
#include "tests/testing/random.h"

namespace kvtier::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kBlockBytes = kTraceBlockTokens * kObjectBytesPerToken;

QualityCurve Flat() { return QualityCurve::Create({{0.1, 1}, {1, 1}}).value(); }

// A request for full blocks with these ids, and a partial one.
TraceRequest Request(int seconds, std::vector<uint64_t> ids) {
  TraceRequest request;
  request.at = absl::Seconds(seconds);
  request.asked_blocks = ids.size() + 1;
  request.full_blocks = std::move(ids);
  return request;
}

// Prompts that extend, repeat or share a part of earlier ones. Ids are chained.
RequestTrace RandomTrace(std::mt19937_64& random, int requests) {
  RequestTrace trace;
  uint64_t next_id = 1;
  for (int i = 0; i < requests; ++i) {
    std::vector<uint64_t> ids;
    if (!trace.empty() && RandomUniform(random, 0, 3) > 0) {
      const uint64_t recent = std::min<uint64_t>(trace.size(), 20);
      ids = trace[trace.size() - 1 - RandomUniform(random, 0, recent - 1)].full_blocks;
      if (!ids.empty() && RandomUniform(random, 0, 3) == 0) {
        ids.resize(RandomUniform(random, 0, ids.size() - 1));
      }
    }
    for (uint64_t more = RandomUniform(random, 0, 4); more > 0; --more) ids.push_back(next_id++);
    trace.push_back(Request(10 * i, std::move(ids)));
  }
  return trace;
}

TEST(RequestTraceTest, ReadsFullBlocksAndCountsTheAskedOnes) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const RequestTrace trace,
      ParseRequestTrace("{\"timestamp\": 5, \"input_length\": 1100, \"output_length\": 3, "
                        "\"hash_ids\": [4, 5, 6]}\n\n"
                        "{\"timestamp\": 5, \"input_length\": 1024, \"hash_ids\": [4, 9]}\n"
                        "{\"timestamp\": 7, \"input_length\": 0, \"hash_ids\": []}"));
  ASSERT_EQ(trace.size(), 3u);
  EXPECT_EQ(trace[0].at, absl::Milliseconds(5));
  EXPECT_EQ(trace[0].asked_blocks, 3u);
  EXPECT_THAT(trace[0].full_blocks, ElementsAre(4, 5));
  EXPECT_THAT(trace[1].full_blocks, ElementsAre(4, 9));
  EXPECT_EQ(trace[2].asked_blocks, 0u);
}

TEST(RequestTraceTest, NamesTheLineAndWhatIsWrong) {
  const std::string good = "{\"timestamp\": 5, \"input_length\": 1024, \"hash_ids\": [4, 5]}\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", "no request"},
      {"[1]", "line 1: not a JSON object"},
      {good + "{\"timestamp\": 5,", "line 2: not a JSON object"},
      {"{\"input_length\": 1, \"hash_ids\": [1]}", "timestamp is not a number"},
      {"{\"timestamp\": -5, \"input_length\": 1, \"hash_ids\": [1]}", "timestamp is not a number"},
      {"{\"timestamp\": 5, \"input_length\": 1.5, \"hash_ids\": [1]}", "input_length is not"},
      {"{\"timestamp\": 5, \"input_length\": 99999999, \"hash_ids\": []}", "more than 1048576"},
      {"{\"timestamp\": 5, \"input_length\": 513, \"hash_ids\": [1]}", "1 hash_ids for 513 tokens"},
      {"{\"timestamp\": 5, \"input_length\": 5}", "hash_ids is not a list"},
      {"{\"timestamp\": 5, \"input_length\": 5, \"hash_ids\": [\"a\"]}", "hash_ids has what is no"},
      {good + "{\"timestamp\": 4, \"input_length\": 0, \"hash_ids\": []}", "line 2: timestamp"},
      {good + "{\"timestamp\": 6, \"input_length\": 1024, \"hash_ids\": [3, 5]}", "hash id 5"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(ParseRequestTrace(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
        << text;
  }
}

TEST(QualityCurveTest, IsStraightBetweenPoints) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const QualityCurve curve,
      QualityCurve::Parse("{\"provenance\": \"none\", \"points\": [{\"ratio\": 0.2, \"quality\": "
                          "0.8}, {\"ratio\": 1, \"quality\": 1}]}"));
  EXPECT_EQ(curve.At(0), 0);
  EXPECT_DOUBLE_EQ(curve.At(0.1), 0.4);
  EXPECT_EQ(curve.At(0.2), 0.8);
  EXPECT_DOUBLE_EQ(curve.At(0.6), 0.9);
  EXPECT_EQ(curve.At(1), 1);
  EXPECT_EQ(QualityCurve::Steep().At(0.1), 0);
  EXPECT_EQ(QualityCurve::Steep().At(0.3), 0.9);
}

TEST(QualityCurveTest, RefusesWhatIsNoCurve) {
  for (const char* text :
       {"", "[]", "{\"points\": 3}", "{\"points\": []}", "{\"points\": [{\"ratio\": 1}]}",
        "{\"points\": [{\"ratio\": 1, \"quality\": 0.9}]}",
        "{\"points\": [{\"ratio\": 0.5, \"quality\": 1}]}",
        "{\"points\": [{\"ratio\": 0, \"quality\": 0}, {\"ratio\": 1, \"quality\": 1}]}",
        "{\"points\": [{\"ratio\": 0.5, \"quality\": 0.9}, {\"ratio\": 0.5, \"quality\": 1}]}",
        "{\"points\": [{\"ratio\": 0.5, \"quality\": 0.9}, {\"ratio\": 1, \"quality\": 0.8}]}"}) {
    EXPECT_THAT(QualityCurve::Parse(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("quality curve")))
        << text;
  }
}

TEST(ReplayTest, CountsBlocksOfTheLongestStoredPrefix) {
  const RequestTrace trace = {
      Request(0, {1, 2}),           // Stored.
      Request(1, {1, 2, 3}),        // Finds two of four blocks.
      Request(2, {1, 9}),           // Shares a block with objects, but no object is its prefix.
      Request(3, {1, 2, 3, 4, 5}),  // Finds three of six.
  };
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ReplayResult result,
      ReplayObjects(trace, {{0.3}, "lru"}, QualityCurve::Steep(), BytesOfAllObjects(trace)));
  EXPECT_DOUBLE_EQ(result.hits, 5.0 / 16);
  EXPECT_DOUBLE_EQ(result.weighted, 0.9 * 5.0 / 16);
  EXPECT_NEAR(static_cast<double>(result.bytes_moved), 0.3 * (5 + 12) * kBlockBytes, 10);
  // Dense blocks are shared: five of the ids are new, and the common first one is found.
  const ReplayResult dense = ReplayDenseBlocks(trace, BytesOfAllObjects(trace));
  EXPECT_DOUBLE_EQ(dense.hits, 6.0 / 16);
  EXPECT_EQ(dense.bytes_moved, (6 + 6) * kTraceBlockTokens * kDenseBytesPerToken);
}

TEST(ReplayTest, WhatDoesNotFitAloneIsNotStored) {
  const RequestTrace trace = {Request(0, {1, 2, 3, 4}), Request(9, {1, 2, 3, 4})};
  const auto hits = [&](std::vector<double> edges, double blocks) {
    return ReplayObjects(trace, {std::move(edges), "gdsf"}, Flat(),
                         static_cast<uint64_t>(blocks * kBlockBytes))
        ->hits;
  };
  EXPECT_EQ(hits({1.0}, 3.9), 0);
  EXPECT_EQ(hits({1.0}, 4), 0.4);
  EXPECT_EQ(hits({0.5, 1.0}, 2), 0.4);  // Half of it does.
  EXPECT_EQ(hits({0.5, 1.0}, 1.9), 0);
}

TEST(ReplayTest, DegradesWhereWholeObjectsMiss) {
  // Two prompts in turn, room for one and a bit.
  RequestTrace trace;
  for (int i = 0; i < 20; ++i) trace.push_back(Request(60 * i, {i % 2 == 0 ? 1u : 2u}));
  const uint64_t capacity = kBlockBytes * 14 / 10;
  EXPECT_EQ(ReplayObjects(trace, {{1.0}, "lru"}, Flat(), capacity)->hits, 0);
  const ReplayResult banded =
      ReplayObjects(trace, {{0.1, 0.3, 1.0}, "gdsf"}, QualityCurve::Steep(), capacity).value();
  EXPECT_DOUBLE_EQ(banded.hits, 18.0 / 40);
  EXPECT_GT(banded.weighted, 0.9 * banded.hits);
}

TEST(ReplayTest, FixedRatiosAreLru) {
  std::mt19937_64 random(TestSeed());
  SCOPED_TRACE(SeedTrace(TestSeed()));
  for (int round = 0; round < 20; ++round) {
    const RequestTrace trace = RandomTrace(random, 300);
    const double ratio = round % 2 == 0 ? 1.0 : 0.25;  // Whole numbers of bytes.
    const uint64_t capacity = RandomUniform(random, 1, 60) * kBlockBytes;
    const auto bytes = [&](size_t blocks) {
      return static_cast<uint64_t>(ratio * static_cast<double>(blocks * kBlockBytes));
    };
    std::list<std::vector<uint64_t>> order;  // Most recently used first.
    uint64_t used = 0;
    double hits = 0, asked = 0;
    for (const TraceRequest& request : trace) {
      const std::vector<uint64_t>& ids = request.full_blocks;
      asked += static_cast<double>(request.asked_blocks);
      auto best = order.end();
      for (auto it = order.begin(); it != order.end(); ++it) {
        if (it->size() <= ids.size() && std::equal(it->begin(), it->end(), ids.begin()) &&
            (best == order.end() || it->size() > best->size())) {
          best = it;
        }
      }
      if (best != order.end()) {
        hits += static_cast<double>(best->size());
        order.splice(order.begin(), order, best);
        if (best->size() == ids.size()) continue;
      }
      if (ids.empty() || bytes(ids.size()) > capacity) continue;
      order.push_front(ids);
      used += bytes(ids.size());
      while (used > capacity) {
        used -= bytes(order.back().size());
        order.pop_back();
      }
    }
    EXPECT_DOUBLE_EQ(ReplayObjects(trace, {{ratio}, "lru"}, Flat(), capacity)->hits, hits / asked)
        << "round " << round;
  }
}

TEST(ReplayTest, EverySchemeIsWithinWhatFitsEverything) {
  std::mt19937_64 random(TestSeed());
  SCOPED_TRACE(SeedTrace(TestSeed()));
  const RequestTrace trace = RandomTrace(random, 400);
  const uint64_t all = BytesOfAllObjects(trace);
  const double limit = ReplayObjects(trace, {{1.0}, "lru"}, Flat(), all)->hits;
  for (const char* policy : {"lru", "gdsf"}) {
    const ObjectScheme banded = {{0.1, 0.3, 1.0}, policy};
    EXPECT_EQ(ReplayObjects(trace, banded, QualityCurve::Steep(), all)->weighted, limit);
    double before = 0;
    for (int share = 64; share > 1; share /= 2) {
      const ReplayResult result =
          ReplayObjects(trace, banded, QualityCurve::Steep(), all / static_cast<uint64_t>(share))
              .value();
      EXPECT_LE(result.hits, limit + 1e-12);
      EXPECT_LE(result.weighted, result.hits + 1e-12);
      EXPECT_GE(result.weighted, 0.9 * before) << policy << ", 1/" << share;
      before = result.weighted;
    }
  }
  EXPECT_THAT(ReplayObjects(trace, {{1.0}, "fifo"}, Flat(), all),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fifo")));
}

TEST(SweepTest, NamesCapacities) {
  EXPECT_EQ(CapacityName(64 * limits::kGiB), "64GiB");
  EXPECT_EQ(CapacityName(limits::kGiB / 4), "0.250GiB");
}

TEST(SweepTest, TheFixtureTraceHasEveryRowOnceAndReachesItsTargets) {
  std::ifstream file(SourcePath("tests/fixtures/traces/chat.jsonl"));
  std::stringstream text;
  text << file.rdbuf();
  KVTIER_ASSERT_OK_AND_ASSIGN(const RequestTrace trace, ParseRequestTrace(text.str()));
  const std::vector<uint64_t> capacities = {2 * limits::kGiB, 8 * limits::kGiB, 64 * limits::kGiB};
  double done = 0;
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<RetentionRow> rows,
                              SweepRetention(trace, QualityCurve::Steep(), capacities,
                                             [&done](double share) { done = share; }));
  EXPECT_EQ(done, 1);
  EXPECT_EQ(rows.size(), 3u * 11 * 6);
  std::map<std::string, RetentionRow> named;
  for (const RetentionRow& row : rows) {
    EXPECT_TRUE(named.emplace(row.name(), row).second) << row.name();
    if (row.required) {
      EXPECT_TRUE(row.pass()) << row.name() << " is " << row.value << " of " << *row.target;
    }
  }
  // The best fixed ratio at 8 GiB is 0.3, and under half of the limit at 2 GiB.
  const RetentionRow& low = named.at("banded_gdsf/2GiB/weighted_steep");
  EXPECT_TRUE(low.required);
  EXPECT_DOUBLE_EQ(*low.target, 1.1 * named.at("whole_0.3_lru/2GiB/weighted_steep").value);
  const RetentionRow& high = named.at("banded_lru/8GiB/weighted");
  EXPECT_FALSE(high.required);
  EXPECT_DOUBLE_EQ(*high.target, 0.99 * named.at("whole_0.3_lru/8GiB/weighted").value);
  EXPECT_FALSE(named.at("whole_0.3_gdsf/8GiB/weighted").target.has_value());
  EXPECT_DOUBLE_EQ(high.limit, named.at("whole_1.0_lru/64GiB/hits").limit);
  EXPECT_THAT(RetentionTable(rows), HasSubstr("dense_blocks_lru"));

  RetentionRow missed = low;
  missed.value = 0.99 * *missed.target;
  EXPECT_FALSE(missed.pass());
}

TEST(SweepTest, DefaultCapacitiesEndWhereEverythingFits) {
  const RequestTrace trace = {Request(0, std::vector<uint64_t>{1, 2, 3})};
  const std::vector<uint64_t> capacities = DefaultCapacities(trace);
  ASSERT_EQ(capacities.size(), 10u);
  EXPECT_EQ(capacities.back(), limits::kGiB);
  EXPECT_EQ(capacities.front(), limits::kGiB >> 9);
}

}  // namespace
}  // namespace kvtier::bench
