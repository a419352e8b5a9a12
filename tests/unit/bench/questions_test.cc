#include "bench/questions.h"

#include <set>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kDocument[] =
    "# The lamp.\n"
    "lamp.color = green\n"
    "  lamp.height=12 m\n"
    "keeper: Ada Lovelace\n"
    "color = red\n"
    "color = blue\n"
    "empty =\n"
    "visit http://example.org at 12:30\n"
    "a sentence that has no separator at all, and goes on for a while to give snippets\n"
    "windows line = yes\r\n"
    "last=1";

std::vector<std::string> Pairs(const std::vector<Question>& questions) {
  std::vector<std::string> pairs;
  for (const Question& q : questions) pairs.push_back(q.question + "|" + q.answer);
  return pairs;
}

TEST(QuestionsTest, FindsLookupsWithUniqueKeys) {
  // "color" stands twice, "empty" has no value, "12:30" and "http:" are no names with values.
  EXPECT_THAT(Pairs(FindLookupQuestions(kDocument)),
              ElementsAre("lamp.color = |green", "lamp.height=|12 m", "keeper: |Ada Lovelace",
                          "windows line = |yes", "last=|1"));
}

TEST(QuestionsTest, FindsSuffixesOfSnippetsThatOccurOnce) {
  const std::string document = "0123456789abcdefghijklmnopqrstuvwxyz";
  const std::vector<Question> questions = FindSuffixQuestions(document);
  ASSERT_EQ(questions.size(), 5u);
  EXPECT_EQ(questions[0].question, "0123456789abcdef");
  EXPECT_EQ(questions[0].answer, "ghijklmnopqrstuv");
  EXPECT_EQ(questions[4].answer, "klmnopqrstuvwxyz");
  // Twice the same text: only snippets across the seam occur once, and too little follows them.
  const std::vector<Question> doubled = FindSuffixQuestions(document + document);
  for (const Question& q : doubled) {
    EXPECT_EQ((document + document).find(q.question), (document + document).rfind(q.question));
  }
  EXPECT_TRUE(FindSuffixQuestions("too short").empty());
}

TEST(QuestionsTest, DrawsWhatWasAskedForOnceEach) {
  const ByteVocabulary bytes{.first_id = 3};
  KVTIER_ASSERT_OK_AND_ASSIGN(const QuestionSet set,
                              DrawQuestions("doc", kDocument, bytes, 30, /*seed=*/1));
  ASSERT_EQ(set.questions.size(), 30u);
  EXPECT_EQ(set.document, "doc");
  std::set<std::string> seen;
  int lookups = 0;
  for (const Question& q : set.questions) {
    EXPECT_TRUE(seen.insert(q.question).second) << q.question;
    EXPECT_THAT(std::string(kDocument), HasSubstr(q.question + q.answer));
    EXPECT_EQ(q.question_ids, bytes.Encode(q.question));
    EXPECT_EQ(q.answer_ids, bytes.Encode(q.answer));
    if (q.kind == QuestionKind::kLookup) ++lookups;
  }
  EXPECT_EQ(lookups, 5);  // All there are; snippets fill up.
}

TEST(QuestionsTest, DrawsTheSameForASeed) {
  const ByteVocabulary bytes;
  const auto draw = [&](uint64_t seed) {
    return Pairs(DrawQuestions("doc", kDocument, bytes, 20, seed)->questions);
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(QuestionsTest, DrawsHalfLookupsWhereThereAreEnough) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const QuestionSet set,
                              DrawQuestions("doc", kDocument, ByteVocabulary(), 6, 1));
  int lookups = 0;
  for (const Question& q : set.questions) lookups += q.kind == QuestionKind::kLookup;
  EXPECT_EQ(lookups, 3);
  EXPECT_EQ(set.questions.size(), 6u);
}

TEST(QuestionsTest, RefusesADocumentWithoutQuestions) {
  EXPECT_THAT(DrawQuestions("doc", "tiny", ByteVocabulary(), 5, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("doc: it has 4 bytes")));
}

TEST(QuestionsTest, JsonRoundTrips) {
  KVTIER_ASSERT_OK_AND_ASSIGN(QuestionSet set,
                              DrawQuestions("doc \"1\"", kDocument, ByteVocabulary(), 8, 1));
  KVTIER_ASSERT_OK_AND_ASSIGN(const QuestionSet read, QuestionsFromJson(QuestionsToJson(set)));
  EXPECT_EQ(read.document, set.document);
  ASSERT_EQ(read.questions.size(), set.questions.size());
  for (size_t i = 0; i < read.questions.size(); ++i) {
    EXPECT_EQ(read.questions[i].kind, set.questions[i].kind);
    EXPECT_EQ(read.questions[i].question, set.questions[i].question);
    EXPECT_EQ(read.questions[i].question_ids, set.questions[i].question_ids);
    EXPECT_EQ(read.questions[i].answer_ids, set.questions[i].answer_ids);
  }
  // Half of a two-byte character: the text is replaced, the ids stay.
  set.questions[0].question = "\xC3";
  set.questions[0].question_ids = {0xC3};
  KVTIER_ASSERT_OK_AND_ASSIGN(const QuestionSet cut, QuestionsFromJson(QuestionsToJson(set)));
  EXPECT_THAT(cut.questions[0].question_ids, ElementsAre(0xC3));
}

TEST(QuestionsTest, RefusesMalformedJsonByName) {
  const auto refused = [](absl::string_view json, absl::string_view text) {
    EXPECT_THAT(QuestionsFromJson(json),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(text))));
  };
  refused("{", "not a JSON object");
  refused("[]", "not a JSON object");
  refused(R"({"questions":[]})", "document");
  refused(R"({"document":"d"})", "\"questions\" is not a list");
  refused(R"({"document":"d","questions":[7]})", "question 0: not an object");
  refused(R"({"document":"d","questions":[{"kind":"riddle"}]})", "kind \"riddle\" is unknown");
  refused(R"({"document":"d","questions":[{"kind":"suffix","question_ids":[]}]})",
          "question_ids is not a list");
  refused(R"({"document":"d","questions":[{"kind":"suffix","question_ids":[-1]}]})",
          "question_ids holds -1");
  refused(R"({"document":"d","questions":[{"kind":"suffix","question_ids":[1],)"
          R"("answer_ids":[4294967296]}]})",
          "answer_ids holds 4294967296");
}

}  // namespace
}  // namespace kvtier
