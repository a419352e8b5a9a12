#include "bench/rows.h"

#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Row Named(const char* name, double value, double limit, std::optional<Target> target) {
  Row row{name, value, "GB/s", limit, "raw TCP", target};
  row.suite = "transfer";
  return row;
}

TEST(RowTest, PassesWhereItsShareOfTheLimitReachesTheTarget) {
  EXPECT_EQ(Named("a", 3, 4, Target::ShareOfLimit(0.75)).pass(), true);
  EXPECT_EQ(Named("a", 2.9, 4, Target::ShareOfLimit(0.75)).pass(), false);
  EXPECT_EQ(Named("a", 3, 0, Target::ShareOfLimit(0.75)).pass(), false) << "no limit measured";
}

TEST(RowTest, PassesWhereItsValueReachesTheTarget) {
  EXPECT_EQ(Named("a", 3, 0, Target::AtLeast(3)).pass(), true);
  EXPECT_EQ(Named("a", 2.9, 100, Target::AtLeast(3)).pass(), false);
  EXPECT_EQ(Named("a", 0.25, 0, Target::AtMost(0.25)).pass(), true);
  EXPECT_EQ(Named("a", 0.26, 0, Target::AtMost(0.25)).pass(), false);
}

TEST(RowTest, WithoutATargetItNeitherPassesNorFails) {
  EXPECT_EQ(Named("a", 3, 4, std::nullopt).pass(), std::nullopt);
}

TEST(RowTest, WhatWasNotMeasuredDoesNotPass) {
  const Row row = NotMeasured("a", "x", Target::AtMost(5), "no redis-server");
  EXPECT_FALSE(row.measured());
  EXPECT_EQ(row.pass(), false);
  EXPECT_EQ(row.of_limit(), std::nullopt);
}

TEST(MissesTest, NamesRequiredRowsThatMissTheirTarget) {
  Row optional = Named("optional", 1, 4, Target::ShareOfLimit(0.5));
  optional.target->is_required = false;
  Row absent = NotMeasured("absent", "x", Target::AtLeast(3), "no redis-server");
  absent.suite = "redis";
  EXPECT_THAT(Misses({Named("good", 3, 4, Target::ShareOfLimit(0.5)), optional,
                      Named("free", 1, 4, std::nullopt)}),
              IsEmpty());
  EXPECT_THAT(Misses({Named("slow", 1, 4, Target::ShareOfLimit(0.5)), absent}),
              ElementsAre("transfer: slow: 1 GB/s (0.250 of raw TCP), must be >= 0.50 of raw TCP",
                          "redis: absent: not measured: no redis-server, must be >= 3 x"));
}

TEST(FormatTableTest, MarksMissesAndWhatWasNotMeasured) {
  const std::string table =
      FormatTable({Named("slow", 1, 4, Target::ShareOfLimit(0.5)),
                   Named("good", 3, 4, Target::ShareOfLimit(0.5)),
                   NotMeasured("absent", "x", std::nullopt, "no redis-server")});
  EXPECT_THAT(table, HasSubstr("0.25 of raw TCP  [>= 0.50 of raw TCP: MISSED]"));
  EXPECT_THAT(table, HasSubstr("0.75 of raw TCP  [>= 0.50 of raw TCP]\n"));
  EXPECT_THAT(table, HasSubstr("absent  not measured: no redis-server\n"));
}

TEST(FormatJsonTest, HasTheFieldsThatApply) {
  SuiteResult result;
  result.rows = {Named("slow", 1, 4, Target::ShareOfLimit(0.5)), Named("plain", 2, 0, std::nullopt),
                 NotMeasured("absent", "x", Target::AtMost(3), "no redis-server")};
  result.facts = {{"requests", 7}};
  const auto json = nlohmann::json::parse(
      FormatJson({.processor = "p", .cores = 2}, 5, true, {{"transfer", result}}));
  EXPECT_EQ(json["machine"]["cores"], 2);
  EXPECT_EQ(json["runs"], 5);
  EXPECT_EQ(json["quick"], true);
  EXPECT_EQ(json["facts"]["transfer"]["requests"], 7);
  const auto expected = nlohmann::json::parse(R"({
    "suite": "transfer", "name": "slow", "value": 1.0, "unit": "GB/s", "limit": 4.0,
    "limit_name": "raw TCP", "of_limit": 0.25, "target": 0.5, "target_is": ">= of_limit",
    "pass": false, "required": true})");
  EXPECT_EQ(json["rows"][0], expected);
  EXPECT_FALSE(json["rows"][1].contains("limit"));
  EXPECT_FALSE(json["rows"][1].contains("pass"));
  EXPECT_FALSE(json["rows"][2].contains("value"));
  EXPECT_EQ(json["rows"][2]["not_measured"], "no redis-server");
  EXPECT_EQ(json["rows"][2]["pass"], false);
}

}  // namespace
}  // namespace kvtier::bench
