#include "compressor/prompt_profile.h"

#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kProfile[] =
    R"({"version": 1, "name": "p", "prefix": [1, 2], "postfix": [3], "first_prompt": [4],
    "later_prompt": [5, 6], "query_prefix": [7], "hint_tokens": 2, "chunk_tokens": 4,
    "byte_vocabulary": {"first_id": 10}, "special_tokens": {"<s>": 1}})";

PromptProfile Parsed() { return *PromptProfile::Parse(kProfile); }

std::vector<uint32_t> Context(uint32_t tokens) {
  std::vector<uint32_t> ids(tokens);
  std::iota(ids.begin(), ids.end(), 100);
  return ids;
}

TEST(PromptProfileTest, ReadsEveryField) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const PromptProfile profile, PromptProfile::Parse(kProfile));
  EXPECT_EQ(profile.name, "p");
  EXPECT_THAT(profile.prefix, ElementsAre(1, 2));
  EXPECT_EQ(profile.hint_tokens, 2u);
  EXPECT_EQ(profile.chunk_tokens, 4u);
  EXPECT_EQ(profile.byte_vocabulary->first_id, 10u);
  EXPECT_EQ(profile.special_tokens.at("<s>"), 1u);
}

TEST(PromptProfileTest, RefusesByName) {
  const struct {
    const char* from;
    const char* to;
    const char* name;
  } cases[] = {{R"("prefix")", R"("prefiks")", "prefiks"},
               {R"("postfix": [3],)", "", "postfix"},
               {"[4]", "[4.5]", "first_prompt"},
               {"[4]", "[-4]", "first_prompt"},
               {"[4]", "[4294967296]", "first_prompt"},
               {"[7]", "7", "query_prefix"},
               {R"("chunk_tokens": 4)", R"("chunk_tokens": 0)", "chunk_tokens"},
               {R"("hint_tokens": 2)", R"("hint_tokens": "2")", "hint_tokens"},
               {R"({"first_id": 10})", R"({"first": 10})", "first"},
               {R"({"<s>": 1})", "[]", "special_tokens"},
               {R"("version": 1,)", "", "version"}};
  for (const auto& c : cases) {
    EXPECT_THAT(PromptProfile::Parse(absl::StrReplaceAll(kProfile, {{c.from, c.to}})),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.name)))
        << c.to;
  }
  EXPECT_THAT(PromptProfile::Parse(absl::StrReplaceAll(kProfile, {{"n\": 1", "n\": 2"}})),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("version 2")));
  TempDir dir;
  EXPECT_THAT(PromptProfile::Load(dir.File("none")), StatusIs(absl::StatusCode::kNotFound));
}

TEST(PromptProfileTest, ValidatesIdsAgainstTheVocabulary) {
  KVTIER_EXPECT_OK(Parsed().Validate(266));
  EXPECT_THAT(Parsed().Validate(265),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("byte_vocabulary")));
  EXPECT_THAT(Parsed().Validate(7),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("query_prefix")));
}

TEST(PromptProfileTest, DigestFollowsWhatChangesScores) {
  const Digest base = Parsed().ComputeDigest();
  PromptProfile other = Parsed();
  other.name = "q";
  other.byte_vocabulary.reset();
  other.special_tokens.clear();
  EXPECT_EQ(other.ComputeDigest(), base) << "names are for people";
  for (auto member : {&PromptProfile::prefix, &PromptProfile::postfix, &PromptProfile::first_prompt,
                      &PromptProfile::later_prompt, &PromptProfile::query_prefix}) {
    other = Parsed();
    (other.*member).push_back(9);
    EXPECT_NE(other.ComputeDigest(), base);
  }
  other = Parsed();
  other.hint_tokens = 3;
  EXPECT_NE(other.ComputeDigest(), base);
  other = Parsed();
  other.chunk_tokens = 5;
  EXPECT_NE(other.ComputeDigest(), base);
  // An id that moves from the end of one list to the start of the next is another profile.
  other = Parsed();
  other.prefix = {1};
  other.postfix = {2, 3};
  EXPECT_NE(other.ComputeDigest(), base);
}

TEST(PromptProfileTest, CutsChunksAsTheNoteSays) {
  const PromptProfile profile = Parsed();  // m = 4
  const auto ends = [&](uint64_t tokens) {
    std::vector<uint64_t> result;
    for (uint32_t chunk = 0; chunk < profile.ChunkCount(tokens); ++chunk) {
      const auto [begin, end] = profile.ChunkAt(tokens, chunk);
      EXPECT_EQ(begin, chunk * 4u);
      result.push_back(end);
    }
    return result;
  };
  EXPECT_THAT(ends(0), IsEmpty());
  EXPECT_THAT(ends(1), ElementsAre(1));
  EXPECT_THAT(ends(4), ElementsAre(4));
  EXPECT_THAT(ends(5), ElementsAre(4, 5));
  EXPECT_THAT(ends(8), ElementsAre(4, 8));
}

TEST(PromptProfileTest, RepeatInputsHoldPromptHintPostfixAndChunk) {
  const PromptProfile profile = Parsed();
  const std::vector<uint32_t> context = Context(9);
  EXPECT_THAT(profile.RepeatInput(context, 0), ElementsAre(4, 3, 100, 101, 102, 103));
  EXPECT_THAT(profile.RepeatInput(context, 1), ElementsAre(5, 6, 102, 103, 3, 104, 105, 106, 107));
  EXPECT_THAT(profile.RepeatInput(context, 2), ElementsAre(5, 6, 106, 107, 3, 108));
  PromptProfile short_chunks = profile;  // A hint longer than a chunk is the chunk.
  short_chunks.chunk_tokens = 1;
  EXPECT_THAT(short_chunks.RepeatInput(context, 1), ElementsAre(5, 6, 100, 3, 101));
  for (uint32_t tokens = 0; tokens < 12; ++tokens) {
    for (const PromptProfile& p : {profile, short_chunks}) {
      size_t longest = 0;
      const std::vector<uint32_t> ids = Context(tokens);
      for (uint32_t chunk = 0; chunk < p.ChunkCount(tokens); ++chunk) {
        longest = std::max(longest, p.RepeatInput(ids, chunk).size());
      }
      EXPECT_EQ(p.RepeatRowsMax(tokens), longest) << tokens;
    }
  }
}

TEST(PromptProfileTest, WrapsQueriesAndEncodesBytes) {
  const PromptProfile profile = Parsed();
  const std::vector<uint32_t> question{50, 51};
  EXPECT_THAT(profile.WrapQuery(question), ElementsAre(7, 50, 51, 3));
  EXPECT_THAT(profile.byte_vocabulary->Encode("a\xff"), ElementsAre(10 + 'a', 10 + 255));
  const std::vector<uint32_t> ids{10 + 'h', 10 + 'i', 9, 266};
  EXPECT_EQ(profile.byte_vocabulary->Decode(ids), "hi??");
}

// What scripts/make_prompt_profile.py writes (tests/golden/README.md) is a profile.
TEST(PromptProfileTest, LoadsWhatTheScriptMakes) {
  struct Case {
    std::string file;
    uint32_t chunk_tokens;
    uint32_t later_prompt_tokens;  // kvpress: without the space, which is a token here
  };
  for (const Case& c : {Case{"llama-3.json", 2000, 43}, Case{"kvpress.json", 2048, 42}}) {
    SCOPED_TRACE(c.file);
    const auto profile = PromptProfile::Load(SourcePath("tests/golden/profiles/") + c.file);
    ASSERT_THAT(profile, IsOk());
    EXPECT_THAT(profile->Validate(325), IsOk());
    EXPECT_EQ(profile->prefix.front(), profile->special_tokens.at("<|begin_of_text|>"));
    EXPECT_EQ(profile->chunk_tokens, c.chunk_tokens);
    EXPECT_EQ(profile->hint_tokens, 8u);
    EXPECT_EQ(profile->later_prompt.size(), c.later_prompt_tokens);
  }
}

}  // namespace
}  // namespace kvtier
