// kvtier-eval: how many questions about a document a compressed cache still answers, beside the
// full cache and other eviction methods. Everything runs in this process, except that `report`
// reads what a worker answered.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>  // NOLINT(build/c++11)
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bench/evaluation.h"
#include "bench/questions.h"
#include "bench/report.h"
#include "compressor/cpu_backend.h"
#include "compressor/model.h"

ABSL_FLAG(std::string, model, "", "folder of the checkpoint; its vocabulary must be bytes");
ABSL_FLAG(std::string, document, "", "file whose bytes are the context");
ABSL_FLAG(std::string, questions, "", "JSON file of questions, as `kvtier-eval questions` writes");
ABSL_FLAG(std::string, out, "", "file to write the result to; empty: standard output");
ABSL_FLAG(uint32_t, count, 200, "questions: how many to draw");
ABSL_FLAG(uint64_t, seed, 1, "questions: which ones to draw");
ABSL_FLAG(std::vector<std::string>, ratios, std::vector<std::string>({"0.6", "0.3", "0.1"}),
          "baselines, kvzip: kept fractions, separated by commas");
ABSL_FLAG(uint32_t, random_seeds, 5, "baselines: random evictions to average over");
ABSL_FLAG(uint32_t, threads, 0, "baselines, kvzip: questions answered at once; 0: one per core");
ABSL_FLAG(std::vector<std::string>, answers, {},
          "report: files that `kvtierctl ask --questions --json --out` wrote, separated by commas");
ABSL_FLAG(std::string, answers_dir, "", "report: folder whose *.json files are such answers");
ABSL_FLAG(std::string, baselines, "", "report: file that `kvtier-eval baselines` wrote");

namespace kvtier {
namespace {

constexpr char kUsage[] =
    "kvtier-eval COMMAND [flags]: measures what compression costs in quality.\n\n"
    "  questions  draw questions whose answers stand in a document\n"
    "             --document F --model DIR [--count 200] [--seed S] [--out Q.json]\n"
    "  baselines  answer them from the full cache, after random eviction, and after SnapKV fitted "
    "to\n"
    "             the first question\n"
    "             --model DIR --document F --questions Q.json [--ratios 0.6,0.3,0.1]\n"
    "             [--random-seeds 5] [--out B.json]\n"
    "  kvzip      answer them after KVzip, and print a table\n"
    "             --model DIR --document F --questions Q.json [--ratios 1,0.6,0.3,0.1]\n"
    "  report     print the table of a demo; its last line is `demo: ok {...}`\n"
    "             --questions Q.json --answers A1.json,A2.json,... --baselines B.json\n\n"
    "A question counts as answered if greedy decoding gives the expected bytes, all of them. A "
    "ratio "
    "is the\nkept fraction of the context's KV pairs. Progress goes to standard error. Exit "
    "status: 0 "
    "done, 1 failed,\n2 the command line or an input makes no sense.";

absl::StatusOr<std::string> ReadWhole(absl::string_view flag, const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError(absl::StrCat("--", flag, " is missing"));
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf() || file.peek() == EOF)) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": cannot read ", path));
  }
  return content.str();
}

absl::Status WriteOut(absl::string_view content) {
  const std::string path = absl::GetFlag(FLAGS_out);
  if (path.empty()) {
    std::cout << content << std::endl;
    return absl::OkStatus();
  }
  std::ofstream file(path, std::ios::binary);
  file << content << "\n";
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

// One line on standard error: redrawn in place on a terminal, printed once per stage when piped.
// Thread-safe.
class Progress {
 public:
  void Start(std::string stage, size_t total) {
    Finish();
    stage_ = std::move(stage);
    total_ = total;
    done_ = 0;
    open_ = true;
    started_ = std::chrono::steady_clock::now();
    Draw(0);
  }
  void Step() {
    const size_t done = ++done_;
    if (done < total_) Draw(done);
  }
  void Finish() {
    if (!open_) return;
    open_ = false;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started_;
    absl::FPrintF(stderr, "%s%-36s %6.1f s\n", terminal_ ? "\r\033[K" : "", stage_, took.count());
  }

 private:
  void Draw(size_t done) const {
    if (!terminal_) return;
    constexpr int kCells = 30;
    const int filled = total_ == 0 ? 0 : static_cast<int>(kCells * done / total_);
    absl::FPrintF(stderr, "\r\033[K%-36s [%s%s] %d/%d", stage_, std::string(filled, '#'),
                  std::string(kCells - filled, '.'), done, total_);
  }

  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  bool open_ = false;
  std::string stage_;
  size_t total_ = 0;
  std::atomic<size_t> done_{0};
  std::chrono::steady_clock::time_point started_;
};

int Threads() {
  const int threads = static_cast<int>(absl::GetFlag(FLAGS_threads));
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

absl::StatusOr<std::vector<Ratio>> RatiosFlag() {
  std::vector<Ratio> ratios;
  for (const std::string& text : absl::GetFlag(FLAGS_ratios)) {
    double value = 0;
    if (!absl::SimpleAtod(text, &value)) {
      return absl::InvalidArgumentError(absl::StrCat("--ratios: \"", text, "\" is no number"));
    }
    KVTIER_ASSIGN_OR_RETURN(const Ratio ratio, Ratio::FromDouble(value));
    ratios.push_back(ratio);
  }
  return ratios;
}

absl::StatusOr<ByteVocabulary> RequireBytes(const PromptProfile& profile) {
  if (profile.byte_vocabulary.has_value()) return *profile.byte_vocabulary;
  return absl::InvalidArgumentError(
      absl::StrCat("prompt profile ", profile.name,
                   " declares no byte vocabulary, so a document's tokens are unknown here"));
}

// What `baselines` and `kvzip` start from.
struct Bench {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::vector<uint32_t> context;
  QuestionSet questions;
  std::vector<Ratio> ratios;
  std::unique_ptr<Evaluation> evaluation;
};

absl::StatusOr<Bench> SetUp(Progress& progress) {
  Bench bench;
  KVTIER_ASSIGN_OR_RETURN(bench.ratios, RatiosFlag());
  KVTIER_ASSIGN_OR_RETURN(const std::string json,
                          ReadWhole("questions", absl::GetFlag(FLAGS_questions)));
  KVTIER_ASSIGN_OR_RETURN(bench.questions, QuestionsFromJson(json));
  if (bench.questions.questions.empty()) return absl::InvalidArgumentError("no questions");
  KVTIER_ASSIGN_OR_RETURN(const std::string document,
                          ReadWhole("document", absl::GetFlag(FLAGS_document)));
  if (absl::GetFlag(FLAGS_model).empty()) return absl::InvalidArgumentError("--model is missing");
  bench.backend = MakeCpuBackend({.threads = Threads()});
  KVTIER_ASSIGN_OR_RETURN(bench.model, Model::Load(absl::GetFlag(FLAGS_model), *bench.backend));
  KVTIER_ASSIGN_OR_RETURN(const ByteVocabulary bytes, RequireBytes(bench.model->profile()));
  bench.context = bytes.Encode(document);
  progress.Start("prefill", 0);
  KVTIER_ASSIGN_OR_RETURN(bench.evaluation, Evaluation::Create(*bench.model, bench.context));
  return bench;
}

absl::StatusOr<ExactCount> CountExact(const Bench& bench, const CompressedObject& object,
                                      Ratio ratio, std::string stage, Progress& progress) {
  const std::vector<Question>& questions = bench.questions.questions;
  progress.Start(absl::StrCat(stage, " at ", ratio.ToString()), questions.size());
  KVTIER_ASSIGN_OR_RETURN(
      const ExactCount count,
      bench.evaluation->CountExact(object, ratio, questions, Threads(), [&] { progress.Step(); }));
  progress.Finish();
  return count;
}

absl::Status DrawCommand() {
  KVTIER_ASSIGN_OR_RETURN(const std::string document,
                          ReadWhole("document", absl::GetFlag(FLAGS_document)));
  if (absl::GetFlag(FLAGS_model).empty()) return absl::InvalidArgumentError("--model is missing");
  // The profile alone, without the weights.
  KVTIER_ASSIGN_OR_RETURN(const PromptProfile profile,
                          PromptProfile::Load(std::filesystem::path(absl::GetFlag(FLAGS_model)) /
                                              "kvtier_prompt_profile.json"));
  KVTIER_ASSIGN_OR_RETURN(const ByteVocabulary bytes, RequireBytes(profile));
  const std::string name = std::filesystem::path(absl::GetFlag(FLAGS_document)).filename();
  KVTIER_ASSIGN_OR_RETURN(
      const QuestionSet set,
      DrawQuestions(name, document, bytes, absl::GetFlag(FLAGS_count), absl::GetFlag(FLAGS_seed)));
  const auto lookups =
      std::count_if(set.questions.begin(), set.questions.end(),
                    [](const Question& q) { return q.kind == QuestionKind::kLookup; });
  absl::FPrintF(stderr, "%s: %d questions, %d of them lookups\n", name, set.questions.size(),
                lookups);
  return WriteOut(QuestionsToJson(set));
}

absl::Status BaselinesCommand() {
  Progress progress;
  KVTIER_ASSIGN_OR_RETURN(const Bench bench, SetUp(progress));
  const Evaluation& evaluation = *bench.evaluation;
  Baselines out;
  out.document = bench.questions.document;
  out.tokens = bench.context.size();
  out.questions = static_cast<uint32_t>(bench.questions.questions.size());
  std::vector<uint32_t> tokens = bench.model->profile().prefix;
  tokens.insert(tokens.end(), bench.context.begin(), bench.context.end());
  progress.Start("full cache", out.questions);
  KVTIER_ASSIGN_OR_RETURN(
      out.full, CountFull(absl::GetFlag(FLAGS_model), bench.model->profile(), tokens,
                          bench.questions.questions, Threads(), [&] { progress.Step(); }));
  progress.Finish();

  for (Ratio ratio : bench.ratios) out.rows.emplace_back().ratio = ratio.ToDouble();
  for (uint32_t seed = 1; seed <= std::max(1u, absl::GetFlag(FLAGS_random_seeds)); ++seed) {
    KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                            evaluation.Pack(evaluation.RandomScores(seed)));
    for (size_t i = 0; i < bench.ratios.size(); ++i) {
      KVTIER_ASSIGN_OR_RETURN(
          const ExactCount count,
          CountExact(bench, object, bench.ratios[i], absl::StrCat("random ", seed), progress));
      out.rows[i].random_by_seed.push_back(count.exact);
    }
  }
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable snapkv,
                          evaluation.SnapKvScores(bench.questions.questions[0].question_ids));
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, evaluation.Pack(snapkv));
  for (size_t i = 0; i < bench.ratios.size(); ++i) {
    KVTIER_ASSIGN_OR_RETURN(const ExactCount count,
                            CountExact(bench, object, bench.ratios[i], "SnapKV", progress));
    out.rows[i].snapkv = count.exact;
  }
  return WriteOut(BaselinesToJson(out));
}

absl::Status KvzipCommand() {
  Progress progress;
  KVTIER_ASSIGN_OR_RETURN(const Bench bench, SetUp(progress));
  progress.Start("scoring", 0);
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, bench.evaluation->KvzipScores());
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, bench.evaluation->Pack(scores));
  progress.Finish();
  int kinds[2] = {0, 0};
  for (const Question& question : bench.questions.questions) {
    ++kinds[static_cast<int>(question.kind)];
  }
  std::string table = absl::StrFormat("%s: %d tokens, %d bytes of KV cache\n%-8s%14s%10s%14s%14s\n",
                                      bench.questions.document, bench.context.size(),
                                      object.manifest->dense_bytes(), "ratio", "bytes", "exact",
                                      "suffix", "lookup");
  for (Ratio ratio : bench.ratios) {
    KVTIER_ASSIGN_OR_RETURN(const ExactCount count,
                            CountExact(bench, object, ratio, "KVzip", progress));
    absl::StrAppendFormat(&table, "%-8s%14d%10d%14s%14s\n", ratio.ToString(), count.bytes,
                          count.exact, absl::StrCat(count.by_kind[0], " of ", kinds[0]),
                          absl::StrCat(count.by_kind[1], " of ", kinds[1]));
  }
  std::cout << table;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> AnswerFiles() {
  std::vector<std::string> files = absl::GetFlag(FLAGS_answers);
  if (const std::string folder = absl::GetFlag(FLAGS_answers_dir); !folder.empty()) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      if (entry.path().extension() == ".json") files.push_back(entry.path());
    }
    if (error) return absl::InvalidArgumentError(absl::StrCat("--answers_dir: ", error.message()));
  }
  return files;
}

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

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 1) {
    return absl::InvalidArgumentError("name one command: questions, baselines, kvzip, report");
  }
  if (arguments[0] == "questions") return DrawCommand();
  if (arguments[0] == "baselines") return BaselinesCommand();
  if (arguments[0] == "kvzip") return KvzipCommand();
  if (arguments[0] == "report") return ReportCommand();
  return absl::InvalidArgumentError(absl::StrCat("unknown command ", arguments[0]));
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage(kUsage);
  absl::FlagsUsageConfig config;  // --help shows the flags of this file and nothing of libraries'.
  config.contains_help_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "kvtier_eval.cc");
  };
  config.normalize_filename = [](absl::string_view file) {
    return std::string(file.substr(std::min(file.rfind("bench/"), file.size())));
  };
  absl::SetFlagsUsageConfig(config);
  // --random-seeds and --random_seeds are the same flag.
  std::vector<std::string> words(argv, argv + argc);
  std::vector<char*> pointers;
  for (std::string& word : words) {
    if (absl::StartsWith(word, "--")) {
      const size_t name_end = std::min(word.find('='), word.size());
      std::replace(word.begin() + 2, word.begin() + static_cast<ptrdiff_t>(name_end), '-', '_');
    }
    pointers.push_back(word.data());
  }
  const std::vector<char*> rest =
      absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());
  const absl::Status status = Run({rest.begin() + 1, rest.end()});
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "kvtier-eval: %s\n", std::string(status.message()));
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) { return kvtier::Main(argc, argv); }
