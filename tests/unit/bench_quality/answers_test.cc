#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "base/status_matchers.h"
#include "bench/quality/answers_file.h"
#include "bench/quality/quality_report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

Cell MakeCell(const char* method, double ratio, Setting setting, std::vector<uint8_t> right) {
  Cell cell;
  cell.method = method;
  cell.ratio = *Ratio::FromDouble(ratio);
  cell.setting = setting;
  cell.right = std::move(right);
  return cell;
}

// Two documents of two samples; KVzip loses one at 0.1, SnapKV three of four at 0.9.
QualityRun MakeRun() {
  QualityRun run;
  run.source = {.model = "tiny",
                .model_digest = "ab",
                .seed = 7,
                .document_bytes = 800,
                .text_files = 3,
                .text_digest = "cd"};
  TaskResult& task = run.tasks.emplace_back();
  task.task = &AllTasks()[2];  // needle, which has depths
  task.documents = 2;
  task.document = {0, 0, 1, 1};
  task.depth = {0.125, 0.5, 0.25, 1};
  for (Setting setting : {Setting::kPerQuery, Setting::kShared}) {
    task.cells.push_back(MakeCell("full", 1, setting, {1, 1, 1, 1}));
    task.cells.back().origin = Origin::kFull;
  }
  for (Setting setting : {Setting::kPerQuery, Setting::kShared}) {
    task.cells.push_back(MakeCell("kvzip", 0.1, setting, {1, 0, 1, 1}));
    task.cells.push_back(MakeCell("kvzip", 0.3, setting, {1, 1, 1, 1}));
  }
  task.cells.push_back(MakeCell("snapkv", 0.9, Setting::kShared, {1, 0, 0, 0}));
  task.cells.push_back(MakeCell("kvzip", 0.3, Setting::kShared, {1, 1, 0, 1}));
  task.cells.back().codec = "int4";
  task.cells.back().origin = Origin::kBands;
  return run;
}

TEST(AnswersFileTest, ReadsWhatItWrites) {
  const QualityRun run = MakeRun();
  const std::string json = QualityRunToJson(run);
  KVTIER_ASSERT_OK_AND_ASSIGN(const QualityRun read, QualityRunFromJson(json));
  EXPECT_EQ(read.source, run.source);
  ASSERT_THAT(read.tasks, SizeIs(1));
  EXPECT_EQ(read.tasks[0].document, run.tasks[0].document);
  EXPECT_EQ(read.tasks[0].depth, run.tasks[0].depth);
  ASSERT_EQ(read.tasks[0].cells.size(), run.tasks[0].cells.size());
  EXPECT_EQ(QualityRunToJson(read), json);
}

TEST(AnswersFileTest, RefusesWhatMakesNoSense) {
  const std::string json = QualityRunToJson(MakeRun());
  const struct {
    const char* from;
    const char* to;
    const char* message;
  } cases[] = {
      {"\"version\":1", "\"version\":2", "version 2"},
      {"\"model\":\"tiny\"", "\"model\":1", "model is not a text"},
      {"\"seed\":7", "\"seed\":-7", "seed is not a count"},
      {"\"name\":\"needle\"", "\"name\":\"noodle\"", "\"noodle\" is unknown"},
      {"[2,2]", "[2,3]", "do not fit"},
      {"[2,2]", "[2,99999999999999]", "do not fit"},
      {"[2,2]", "[2]", "do not fit"},
      {"\"1000\"", "\"10\"", "is not 4 of 0 and 1"},
      {"\"1000\"", "\"1002\"", "is not 4 of 0 and 1"},
      {"\"ratio\":0.9", "\"ratio\":1.5", "1.5"},
      {"\"setting\":\"shared\"", "\"setting\":\"both\"", "\"both\" is unknown"},
      {"\"origin\":\"bands\"", "\"origin\":\"air\"", "\"air\" is unknown"},
      {"\"task\":\"needle\"", "\"task\":\"hay\"", "\"hay\""},
      {"\"method\":\"full\"", "\"method\":\"fool\"", "first cell is not the full cache"},
  };
  for (const auto& one : cases) {
    const std::string bad = absl::StrReplaceAll(json, {{one.from, one.to}});
    ASSERT_NE(bad, json) << one.from;
    EXPECT_THAT(QualityRunFromJson(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(one.message)))
        << one.to;
  }
  EXPECT_THAT(QualityRunFromJson("[]"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(QualityRunFromJson(json.substr(0, json.size() / 2)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(AnswersFileTest, MergesCellsAndRefusesContradictions) {
  QualityRun all = MakeRun();
  QualityRun more = MakeRun();
  more.tasks[0].cells.push_back(MakeCell("random", 0.3, Setting::kShared, {0, 0, 0, 1}));
  KVTIER_EXPECT_OK(MergeAnswers(more, all));
  EXPECT_EQ(all.tasks[0].cells.size(), MakeRun().tasks[0].cells.size() + 1);

  more.tasks[0].cells.back().right = {1, 1, 1, 1};
  EXPECT_THAT(MergeAnswers(more, all),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("different answers")));
  more = MakeRun();
  more.tasks[0].document = {0, 1, 1, 1};
  EXPECT_THAT(MergeAnswers(more, all),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("different samples")));
  more = MakeRun();
  more.source.seed = 8;
  EXPECT_THAT(MergeAnswers(more, all), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(QualityReportTest, ComparesSampleBySample) {
  const QualityRun run = MakeRun();
  const std::vector<Comparison> comparisons = Compare(run.tasks);
  ASSERT_THAT(comparisons, SizeIs(3));
  EXPECT_EQ(comparisons[0].a, "kvzip at 0.3");
  EXPECT_EQ(comparisons[0].difference.value, 0);
  EXPECT_EQ(comparisons[1].a, "kvzip at 0.3 int4");
  EXPECT_EQ(comparisons[1].b, "kvzip at 0.3");
  EXPECT_EQ(comparisons[1].difference.value, -0.25);
  EXPECT_EQ(comparisons[2].a, "snapkv at 0.9");
  EXPECT_EQ(comparisons[2].difference.value, -0.75);
}

TEST(QualityReportTest, FindsWhereNothingIsLost) {
  // 300 documents of two samples; SnapKV loses whole documents.
  constexpr uint32_t kDocuments = 300;
  TaskResult task;
  task.task = &AllTasks()[0];
  task.documents = kDocuments;
  std::vector<uint8_t> one_in_three;
  for (uint32_t d = 0; d < kDocuments; ++d) {
    task.document.insert(task.document.end(), 2, d);
    one_in_three.insert(one_in_three.end(), 2, d % 3 == 0 ? 1 : 0);
  }
  const std::vector<uint8_t> all(task.document.size(), 1);
  task.depth.assign(all.size(), 0.5);
  task.cells = {MakeCell("full", 1, Setting::kShared, all),
                MakeCell("kvzip", 0.1, Setting::kShared, one_in_three),
                MakeCell("kvzip", 0.3, Setting::kShared, all),
                MakeCell("kvzip", 0.9, Setting::kShared, all)};
  const Ratio from = *Ratio::FromDouble(0.3);
  EXPECT_EQ(LosslessFrom(task, "kvzip", /*points=*/0.02), from);
  // The two samples of a document are alike: 300 draws, 1.968 / 302 on either side; 600 would
  // give 0.0033.
  EXPECT_EQ(LosslessFrom(task, "kvzip", /*points=*/0.0066), from);
  EXPECT_EQ(LosslessFrom(task, "kvzip", /*points=*/0.0064), std::nullopt);
  EXPECT_EQ(LosslessFrom(task, "snapkv", /*points=*/0.02), std::nullopt);
}

// Needles of one depth are few per document, but those there are count as alike all the same.
TEST(QualityReportTest, IntervalsOfDepthsAreWidened) {
  QualityRun run = MakeRun();
  TaskResult& task = run.tasks[0];
  task.documents = 20;
  task.document.clear();
  task.cells.clear();
  std::vector<uint8_t> right;
  for (uint32_t d = 0; d < task.documents; ++d) {
    task.document.insert(task.document.end(), 4, d);
    right.insert(right.end(), 4, d % 2 == 0 ? 1 : 0);
  }
  task.depth.assign(right.size(), 0.1);
  task.cells = {MakeCell("full", 1, Setting::kShared, right)};
  const nlohmann::json row = nlohmann::json::parse(QualityJson(run))["needle_depth"][0];
  EXPECT_EQ(row["samples"], 80);
  EXPECT_LT(row["low"], 0.3);  // Wilson's of 40 out of 80 begins at 0.39.
  EXPECT_GT(row["high"], 0.7);
}

TEST(QualityReportTest, WritesARowPerCellInCsvAndJson) {
  const QualityRun run = MakeRun();
  const std::string csv = QualityCsv(run.tasks);
  EXPECT_THAT(csv, HasSubstr("task,method,ratio,setting,codec,origin,score,low,high,samples,"
                             "minus_full,minus_full_low,minus_full_high\n"));
  EXPECT_THAT(csv, HasSubstr("needle,snapkv,0.9,shared,raw,selected,0.25,"));
  EXPECT_THAT(csv, HasSubstr("needle,kvzip,0.3,shared,int4,bands,0.75,"));
  // A header and eight rows; whoever writes the file ends the last line.
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 8);
  EXPECT_NE(csv.back(), '\n');

  const nlohmann::json json = nlohmann::json::parse(QualityJson(run));
  ASSERT_EQ(json["rows"].size(), 8u);
  for (const auto& row : json["rows"]) {
    EXPECT_EQ(row["samples"], 4);
    EXPECT_LE(row["low"].get<double>(), row["score"].get<double>());
    EXPECT_GE(row["high"].get<double>(), row["score"].get<double>());
  }
  EXPECT_EQ(json["tasks"][0]["samples"], 4);
  EXPECT_GE(json["tasks"][0]["correlation"], 0.0);
  EXPECT_LE(json["tasks"][0]["correlation"], 1.0);
  EXPECT_EQ(json["needle_depth"][0]["depth_from"], 0.0);
  EXPECT_THAT(QualityTable(run.tasks), HasSubstr("kvzip int4"));
}

}  // namespace
}  // namespace kvtier
