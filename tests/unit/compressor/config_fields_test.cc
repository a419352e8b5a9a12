#include "compressor/config_fields.h"

#include <optional>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotBuilt = absl::StatusCode::kUnimplemented;

ConfigFields Fields(absl::string_view text) { return ConfigFields::Parse(text).value(); }

TEST(ConfigFieldsTest, WhatNobodyReadIsRefused) {
  ConfigFields fields = Fields(R"({"a": 1, "b": 2, "c": {"d": [3]}})");
  EXPECT_THAT(fields.Count("a", 9), IsOkAndHolds(1));
  EXPECT_TRUE(fields.Has("b"));
  EXPECT_THAT(fields.RefuseUnknown({}),
              StatusIs(kNotBuilt, HasSubstr(R"(config.json: c = {"d":[3]} is not built)")));
  const absl::string_view ignored[] = {"c"};
  KVTIER_EXPECT_OK(fields.RefuseUnknown(ignored));
}

TEST(ConfigFieldsTest, ObjectsInsideAreNamedAndReadOnTheirOwn) {
  ConfigFields fields = Fields(R"({"a": {"b": {"c": true}}, "c": 1})");
  KVTIER_ASSERT_OK_AND_ASSIGN(std::optional<ConfigFields> a, fields.Object("a"));
  KVTIER_ASSERT_OK_AND_ASSIGN(std::optional<ConfigFields> b, a->Object("b"));
  EXPECT_EQ(b->prefix(), "a.b.");
  EXPECT_THAT(b->Count("c", 9), StatusIs(kInvalid, HasSubstr("config.json: a.b.c is true")));
  EXPECT_THAT(b->Only("c", "false"), StatusIs(kNotBuilt, HasSubstr("a.b.c = true")));
  KVTIER_EXPECT_OK(b->RefuseUnknown({}));
  EXPECT_THAT(fields.RefuseUnknown({}), StatusIs(kNotBuilt, HasSubstr("c = 1")));
  EXPECT_THAT(fields.Object("c"), StatusIs(kInvalid, HasSubstr("c is no object")));
}

TEST(ConfigFieldsTest, NullIsAbsent) {
  ConfigFields fields = Fields(R"({"a": null})");
  EXPECT_FALSE(fields.Has("a"));
  EXPECT_THAT(fields.Count("a", 9, 7), IsOkAndHolds(7));
  EXPECT_THAT(fields.Count("a", 9), StatusIs(kInvalid, HasSubstr("a is missing")));
  EXPECT_THAT(fields.Positive("a"), IsOkAndHolds(std::nullopt));
  EXPECT_FALSE(fields.Is("a", "null"));
  KVTIER_EXPECT_OK(fields.Only("a", "5"));
  EXPECT_TRUE(fields.Equal("a", "b"));
}

TEST(ConfigFieldsTest, ValuesAreHeldAgainstTheirKind) {
  ConfigFields fields = Fields(
      R"({"zero": 0, "half": 0.5, "one": 1.0, "text": "x", "list": ["x", 1], "huge": 1e300})");
  EXPECT_THAT(fields.Count("zero", 9), StatusIs(kInvalid, HasSubstr("[1, 9]")));
  EXPECT_THAT(fields.CountOrZero("zero", 9), IsOkAndHolds(std::optional<int64_t>(0)));
  EXPECT_THAT(fields.CountOrZero("half", 9), StatusIs(kInvalid));
  EXPECT_THAT(fields.Positive("half"), IsOkAndHolds(std::optional<double>(0.5)));
  EXPECT_THAT(fields.Positive("zero"), StatusIs(kInvalid));
  EXPECT_THAT(fields.Positive("huge"), StatusIs(kInvalid)) << "infinite in fp32";
  EXPECT_TRUE(fields.Is("one", "1")) << "numbers are compared, not their text";
  EXPECT_THAT(fields.Text("half"), StatusIs(kInvalid));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto items, fields.Items("list", 2));
  EXPECT_THAT(*items, ElementsAre(R"("x")", "1"));
  EXPECT_THAT(fields.Items("list", 3), StatusIs(kInvalid, HasSubstr("list of 3 items")));
}

TEST(ConfigFieldsTest, TheTextIsOneObjectOfLimitedSize) {
  const std::string large = "{\"a\": \"" + std::string(limits::kConfigJsonBytesMax, 'x') + "\"}";
  EXPECT_THAT(ConfigFields::Parse(large), StatusIs(kInvalid, HasSubstr("bytes, at most")));
  for (const char* text : {"", "[]", "{}{}", R"({"a": 1, "a": 2})"}) {
    EXPECT_THAT(ConfigFields::Parse(text), StatusIs(kInvalid, HasSubstr("config.json"))) << text;
  }
}

}  // namespace
}  // namespace kvtier
