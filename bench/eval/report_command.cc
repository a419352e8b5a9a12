// kvtier-eval report: the table of a demo, from what a worker answered and from `baselines`.
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/command_line.h"
#include "bench/questions.h"
#include "bench/report.h"

ABSL_FLAG(std::vector<std::string>, answers, {},
          "report: files that `kvtierctl ask --questions --json --out` wrote, separated by commas; "
          "quality-report: files that `kvtier-eval quality --out` wrote");
ABSL_FLAG(std::string, answers_dir, "", "report: folder whose *.json files are such answers");
ABSL_FLAG(std::string, baselines, "", "report: file that `kvtier-eval baselines` wrote");

namespace kvtier {
namespace {

absl::StatusOr<std::vector<std::string>> AnswerFiles() {
  std::vector<std::string> files = absl::GetFlag(FLAGS_answers);
  if (const std::string folder = absl::GetFlag(FLAGS_answers_dir); !folder.empty()) {
    std::error_code error;
    auto entry = std::filesystem::directory_iterator(folder, error);
    while (!error && entry != std::filesystem::directory_iterator()) {
      if (entry->path().extension() == ".json") files.push_back(entry->path());
      entry.increment(error);
    }
    if (error) return absl::InvalidArgumentError(absl::StrCat("--answers_dir: ", error.message()));
  }
  return files;
}

}  // namespace

absl::Status ReportCommand() {
  KVTIER_ASSIGN_OR_RETURN(const std::string questions_json,
                          ReadWhole("questions", absl::GetFlag(FLAGS_questions)));
  KVTIER_ASSIGN_OR_RETURN(const QuestionSet questions, QuestionsFromJson(questions_json));
  KVTIER_ASSIGN_OR_RETURN(const std::string baselines_json,
                          ReadWhole("baselines", absl::GetFlag(FLAGS_baselines)));
  KVTIER_ASSIGN_OR_RETURN(const Baselines baselines, BaselinesFromJson(baselines_json));
  KVTIER_ASSIGN_OR_RETURN(const std::vector<std::string> files, AnswerFiles());
  std::vector<Answers> answers;
  for (const std::string& file : files) {
    KVTIER_ASSIGN_OR_RETURN(const std::string json, ReadWhole("answers", file));
    absl::StatusOr<Answers> parsed = AnswersFromJson(json);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": ", parsed.status().message()));
    }
    answers.push_back(*parsed);
  }
  KVTIER_ASSIGN_OR_RETURN(
      const std::string report,
      MakeReport(static_cast<uint32_t>(questions.questions.size()), answers, baselines));
  std::cout << report;
  return absl::OkStatus();
}

}  // namespace kvtier
