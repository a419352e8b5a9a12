#include "kvcache/recipe.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const std::string kDigest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

TEST(RecipeTest, CanonicalTextsRoundTrip) {
  const std::vector<std::pair<std::string, SelectionRule>> texts = {
      {"kvzip/1", SelectionRule::kExact},
      {"kvpress/1", SelectionRule::kKvpress},
      {"kvzip+/1", SelectionRule::kExact},
      {"uniform/1", SelectionRule::kPerHead},
      {"full-softmax/1", SelectionRule::kExact},
      {"head/1;scores=" + kDigest, SelectionRule::kWholeHeads}};
  for (const auto& [text, rule] : texts) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe recipe, Recipe::Parse(text));
    EXPECT_EQ(recipe.ToString(), text);
    EXPECT_EQ(recipe.selection(), rule);
    EXPECT_EQ(SelectionOfRecipe(text), rule);
    EXPECT_EQ(recipe.row_codec, CodecId::kRaw);
    EXPECT_EQ(recipe.repeats_context(), recipe.scorer != Scorer::kHead);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe requested, Recipe::ParseRequest(text));
    EXPECT_EQ(requested, recipe);
  }
  EXPECT_EQ(Recipe().ToString(), "kvzip/1");  // Keys of stored objects depend on it.
}

TEST(RecipeTest, TheRowCodecIsPartOfIt) {
  for (const CodecId codec : {CodecId::kInt8, CodecId::kInt4}) {
    const std::string text = absl::StrCat("kvzip+/1;codec=", CodecName(codec));
    KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe recipe, Recipe::Parse(text));
    EXPECT_EQ(recipe.row_codec, codec);
    EXPECT_EQ(recipe.ToString(), text);
    EXPECT_EQ(CodecOfRecipe(text), codec);
  }
  // Texts of other producers are held to raw.
  EXPECT_EQ(CodecOfRecipe("other/1;codec=int4"), CodecId::kRaw);
  EXPECT_EQ(CodecOfRecipe(""), CodecId::kRaw);
}

TEST(RecipeTest, ARequestMayLeaveVersionAndDigestOpen) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe plus, Recipe::ParseRequest("kvzip+"));
  EXPECT_EQ(plus.ToString(), "kvzip+/1");
  KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe head, Recipe::ParseRequest("head"));
  EXPECT_EQ(head.scorer, Scorer::kHead);
  EXPECT_TRUE(head.head_scores.IsZero());
  KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe raw, Recipe::ParseRequest("uniform;codec=raw"));
  EXPECT_EQ(raw.ToString(), "uniform/1");
}

TEST(RecipeTest, RectanglesAreCutFromOneOrderAndNeverComputed) {
  for (const auto& [text, rule] :
       {std::pair("kvzip/1;rect=layer", SelectionRule::kPerLayer),
        std::pair("kvzip/1;rect=object", SelectionRule::kPerHead),
        std::pair("kvzip+/1;rect=layer", SelectionRule::kPerLayer),
        std::pair("full-softmax/1;rect=object", SelectionRule::kPerHead)}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Recipe recipe, Recipe::Parse(text));
    EXPECT_EQ(recipe.ToString(), text);
    EXPECT_EQ(recipe.selection(), rule);
    EXPECT_EQ(SelectionOfRecipe(text), rule);
    EXPECT_THAT(Recipe::ParseRequest(text), StatusIs(kInvalid, HasSubstr("re-band")));
  }
  for (const std::string& text :
       {std::string("uniform/1;rect=layer"), std::string("kvpress/1;rect=object"),
        "head/1;scores=" + kDigest + ";rect=layer", std::string("kvzip/1;rect=head"),
        std::string("kvzip/1;rect=layer;rect=layer"), std::string("kvzip/1;rect")}) {
    EXPECT_THAT(Recipe::Parse(text), StatusIs(kInvalid, HasSubstr(text)));
  }
}

TEST(RecipeTest, RefusalsNameTheRecipeAndTheKnownOnes) {
  for (const char* text : {"magic", "", "/1", "KVzip", "kvzip ", " kvzip", "kvzip+1", "none"}) {
    for (auto* parse : {&Recipe::Parse, &Recipe::ParseRequest}) {
      EXPECT_THAT(parse(text),
                  StatusIs(kInvalid,
                           AllOf(HasSubstr(absl::string_view(text).data()),
                                 HasSubstr("kvzip, kvpress, kvzip+, uniform, head, full-softmax"))))
          << text;
    }
  }
}

TEST(RecipeTest, OnlyTheCanonicalTextIsParsed) {
  const std::vector<std::pair<std::string, const char*>> texts = {
      {"kvzip", "no version"},
      {"kvzip/2", "knows kvzip/1"},
      {"kvzip/01", "unknown version"},
      {"kvzip/1 ", "unknown version"},
      {"kvzip/", "unknown version"},
      {"kvzip/1/1", "unknown version"},
      {"kvzip/1;", "unknown option \"\""},
      {"kvzip/1;chunk=4000", "unknown option \"chunk=4000\""},
      {"kvzip/1;codec=raw", "that is \"kvzip/1\""},
      {"kvzip/1;codec=zip", "this build knows: raw"},
      {"kvzip/1;scores=" + kDigest, "only head"},
      {"head/1", "no scores="},
      {"head/1;scores=" + kDigest.substr(1), "64"},
      {"head/1;scores=" + std::string(64, '0'), "64"},
      {"head/1;scores=" + std::string(64, 'A'), "64"},
      {"head/1;scores=" + kDigest + ";scores=" + kDigest, "not canonical"},
      {"head/1;codec=raw;scores=" + kDigest, "not canonical"}};
  for (const auto& [text, message] : texts) {
    EXPECT_THAT(Recipe::Parse(text), StatusIs(kInvalid, AllOf(HasSubstr(text), HasSubstr(message))))
        << text;
    EXPECT_EQ(SelectionOfRecipe(text), SelectionRule::kExact) << text;
  }
}

}  // namespace
}  // namespace kvtier
