#include "bench/report.h"

#include "absl/strings/str_split.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Baselines MakeBaselines() {
  Baselines baselines;
  baselines.document = "demo.txt";
  baselines.tokens = 4500;
  baselines.questions = 200;
  baselines.full = 198;
  for (double ratio : {0.6, 0.3}) {
    BaselineRow row;
    row.ratio = ratio;
    row.random_by_seed = {10, 12, 11, 12, 10};
    row.snapkv = 20;
    baselines.rows.push_back(row);
  }
  return baselines;
}

Answers MakeAnswers(double ratio, uint32_t exact) {
  Answers answers;
  answers.ratio = ratio;
  answers.bytes = 1000000;
  answers.fetch_ms = 12.3456;
  answers.tokens = 4500;
  answers.dense_bytes = 25000000;
  answers.exact = exact;
  answers.total = 200;
  return answers;
}

TEST(ReportTest, EndsInOneLineForScripts) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const std::string report,
      MakeReport(200, {MakeAnswers(0.3, 197), MakeAnswers(1, 198), MakeAnswers(0.6, 198)},
                 MakeBaselines()));
  const std::vector<std::string> lines = absl::StrSplit(report, '\n');
  ASSERT_GE(lines.size(), 2u);
  EXPECT_EQ(lines.back(), "");
  const std::string last = lines[lines.size() - 2];
  ASSERT_EQ(last.rfind("demo: ok ", 0), 0u) << last;
  const auto summary = nlohmann::json::parse(last.substr(9));
  EXPECT_EQ(summary, nlohmann::json::parse(R"({
      "document": "demo.txt", "tokens": 4500, "dense_bytes": 25000000, "questions": 200,
      "full": 198, "prefilled_context_tokens": 0, "rows": [
        {"ratio": 1.0, "bytes": 1000000, "fetch_ms": 12.346, "kvzip": 198, "random": 198.0,
         "snapkv": 198},
        {"ratio": 0.6, "bytes": 1000000, "fetch_ms": 12.346, "kvzip": 198, "random": 11.0,
         "snapkv": 20},
        {"ratio": 0.3, "bytes": 1000000, "fetch_ms": 12.346, "kvzip": 197, "random": 11.0,
         "snapkv": 20}]})"));
}

TEST(ReportTest, RefusesNumbersThatDoNotBelongTogether) {
  const Baselines baselines = MakeBaselines();
  const auto refused = [&](std::vector<Answers> answers, absl::string_view text,
                           absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    EXPECT_THAT(MakeReport(200, answers, baselines), StatusIs(code, HasSubstr(std::string(text))));
  };
  refused({}, "no answers");
  refused({MakeAnswers(0.2, 1)}, "ratio 0.2: the baselines have no such ratio");
  Answers answers = MakeAnswers(0.3, 1);
  answers.total = 199;
  refused({answers}, "199 questions, expected 200");
  answers = MakeAnswers(0.3, 1);
  answers.dense_bytes = 5;
  refused({MakeAnswers(0.6, 1), answers}, "of another document");
  answers = MakeAnswers(0.3, 1);
  answers.prefilled_context_tokens = 7;
  refused({answers}, "prefilled 7 context tokens", absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MakeReport(100, {MakeAnswers(1, 1)}, baselines),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("answered 200 questions")));
}

TEST(ReportTest, BaselinesRoundTripAsJson) {
  const Baselines baselines = MakeBaselines();
  KVTIER_ASSERT_OK_AND_ASSIGN(const Baselines read, BaselinesFromJson(BaselinesToJson(baselines)));
  EXPECT_EQ(read.document, "demo.txt");
  EXPECT_EQ(read.tokens, 4500u);
  EXPECT_EQ(read.full, 198u);
  ASSERT_EQ(read.rows.size(), 2u);
  EXPECT_EQ(read.rows[1].ratio, 0.3);
  EXPECT_EQ(read.rows[1].snapkv, 20u);
  EXPECT_THAT(read.rows[1].random_by_seed, ElementsAre(10, 12, 11, 12, 10));
  EXPECT_EQ(read.rows[1].random_mean(), 11.0);
}

TEST(ReportTest, RefusesMalformedFilesByField) {
  EXPECT_THAT(BaselinesFromJson("{}"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"document\"")));
  EXPECT_THAT(BaselinesFromJson("nonsense"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(BaselinesFromJson(R"({"document":"d","tokens":1,"questions":1,"full":1,
                                    "rows":[{"ratio":0.3,"snapkv":1,"random_by_seed":[]}]})"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"random_by_seed\"")));
  EXPECT_THAT(AnswersFromJson(R"({"ratio":0.3,"fetch_ms":1,"bytes":-4})"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"bytes\"")));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const Answers answers,
      AnswersFromJson(R"({"ratio":0.3,"bytes":9,"fetch_ms":1.5,"prefilled_context_tokens":0,
                          "tokens":5,"dense_bytes":80,"exact":2,"total":3,
                          "answers":[{"answer_ids":[1],"exact":true}]})"));
  EXPECT_EQ(answers.exact, 2u);
  EXPECT_EQ(answers.fetch_ms, 1.5);
}

}  // namespace
}  // namespace kvtier
