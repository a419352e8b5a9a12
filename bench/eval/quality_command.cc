// kvtier-eval quality: tasks x methods x ratios in both settings, as a table, CSV and JSON; and
// kvtier-eval quality-report: the same from the answers of earlier runs.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/command_line.h"
#include "bench/eval/progress.h"
#include "bench/quality/answers_file.h"
#include "bench/quality/experiment.h"
#include "bench/quality/methods.h"
#include "bench/quality/quality_report.h"
#include "bench/quality/tasks.h"
#include "bench/quality/text_source.h"
#include "compressor/cpu_backend.h"
#include "compressor/model.h"

ABSL_FLAG(bool, quick, false,
          "quality: few samples and ratios, short documents; not with --samples or "
          "--document_bytes");
// Without a default, so that --quick can tell whether they are given.
ABSL_FLAG(std::optional<uint32_t>, samples, std::nullopt,
          "quality: at least so many per task; 1000 if not given");
ABSL_FLAG(std::optional<uint64_t>, document_bytes, std::nullopt,
          "quality: length of a document; 800 if not given");
ABSL_FLAG(std::vector<std::string>, tasks, {}, "quality: names; empty: all");
ABSL_FLAG(std::vector<std::string>, methods, {}, "quality: names; empty: all");
ABSL_FLAG(std::vector<std::string>, text, {},
          "quality: folders of real text; empty: the held-out fifth of this machine's licences and "
          "documentation");
ABSL_DECLARE_FLAG(std::vector<std::string>, answers);
ABSL_FLAG(std::string, json, "", "quality, quality-report: file to write everything to");
ABSL_FLAG(std::string, csv, "", "quality, quality-report: file to write the rows to");

namespace kvtier {
namespace {

// All of `all` if `names` is empty. INVALID_ARGUMENT naming what is unknown.
template <typename T>
absl::StatusOr<std::vector<const T*>> ByName(absl::string_view flag, std::span<const T> all,
                                             const std::vector<std::string>& names) {
  std::vector<const T*> chosen;
  std::string known;
  for (const T& item : all) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", item.name);
    if (names.empty()) chosen.push_back(&item);
  }
  for (const std::string& name : names) {
    const auto it =
        std::find_if(all.begin(), all.end(), [&](const T& item) { return name == item.name; });
    if (it == all.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": \"", name, "\" is unknown; there are: ", known));
    }
    chosen.push_back(&*it);
  }
  return chosen;
}

absl::StatusOr<TextSource> LoadText() {
  const std::vector<std::string> named = absl::GetFlag(FLAGS_text);
  if (!named.empty()) return TextSource::Load(named, /*held_out=*/false);
  std::vector<std::string> folders;
  for (const char* folder : {"/usr/share/common-licenses", "/usr/share/doc"}) {
    std::error_code error;
    if (std::filesystem::is_directory(folder, error)) folders.emplace_back(folder);
  }
  if (folders.empty()) {
    return absl::InvalidArgumentError(
        "this machine has no /usr/share/doc: name a folder of ASCII text with --text");
  }
  return TextSource::Load(folders, /*held_out=*/true);
}

absl::StatusOr<ExperimentOptions> OptionsFromFlags() {
  ExperimentOptions options;
  KVTIER_ASSIGN_OR_RETURN(options.tasks, ByName("tasks", AllTasks(), absl::GetFlag(FLAGS_tasks)));
  KVTIER_ASSIGN_OR_RETURN(options.methods,
                          ByName("methods", AllMethods(), absl::GetFlag(FLAGS_methods)));
  const bool quick = absl::GetFlag(FLAGS_quick);
  const std::optional<uint32_t> samples = absl::GetFlag(FLAGS_samples);
  const std::optional<uint64_t> bytes = absl::GetFlag(FLAGS_document_bytes);
  if (quick && (samples.has_value() || bytes.has_value())) {
    return absl::InvalidArgumentError(
        absl::StrCat("--quick sets --", samples.has_value() ? "samples" : "document_bytes",
                     " itself: give one of the two"));
  }
  KVTIER_ASSIGN_OR_RETURN(options.ratios,
                          RatiosFlag(quick ? std::vector<std::string>{"0.1", "0.3", "0.9"}
                                           : std::vector<std::string>{"0.02", "0.05", "0.1", "0.3",
                                                                      "0.5", "0.7", "0.9"}));
  std::sort(options.ratios.begin(), options.ratios.end());
  options.samples = quick ? 24 : samples.value_or(options.samples);
  options.bytes = quick ? 700 : bytes.value_or(options.bytes);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.threads = ThreadsFlag();
  return options;
}

absl::Status Report(const QualityRun& run) {
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    KVTIER_RETURN_IF_ERROR(WriteFile(path, QualityJson(run)));
  }
  if (const std::string path = absl::GetFlag(FLAGS_csv); !path.empty()) {
    KVTIER_RETURN_IF_ERROR(WriteFile(path, QualityCsv(run.tasks)));
  }
  std::cout << QualityTable(run.tasks);
  return absl::OkStatus();
}

}  // namespace

absl::Status QualityCommand() {
  KVTIER_ASSIGN_OR_RETURN(const ExperimentOptions options, OptionsFromFlags());
  KVTIER_ASSIGN_OR_RETURN(const std::string folder, ModelFlag());
  KVTIER_ASSIGN_OR_RETURN(const TextSource text, LoadText());
  // One thread inside each pass: documents are what runs side by side.
  const std::unique_ptr<Backend> backend = MakeCpuBackend({.threads = 1});
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(folder, *backend));

  QualityRun run;
  run.source = {.model = model->name(),
                .model_digest = model->digest().ToHex(),
                .seed = options.seed,
                .document_bytes = options.bytes,
                .text_files = text.files(),
                .text_digest = text.digest()};
  // Task by task, so that the log of a long run tells how far it is.
  Progress progress;
  ExperimentOptions one_task = options;
  for (const Task* task : options.tasks) {
    one_task.tasks = {task};
    KVTIER_ASSIGN_OR_RETURN(const uint64_t documents, DocumentCount(text, one_task));
    progress.Start(task->title, documents);
    KVTIER_ASSIGN_OR_RETURN(std::vector<TaskResult> results,
                            RunExperiment(*model, text, one_task, [&] { progress.Step(); }));
    run.tasks.push_back(std::move(results[0]));
  }
  progress.Finish();
  if (const std::string path = absl::GetFlag(FLAGS_out); !path.empty()) {
    KVTIER_RETURN_IF_ERROR(WriteFile(path, QualityRunToJson(run)));
  }
  return Report(run);
}

absl::Status QualityReportCommand() {
  const std::vector<std::string> files = absl::GetFlag(FLAGS_answers);
  if (files.empty()) return absl::InvalidArgumentError("--answers is missing");
  std::optional<QualityRun> all;
  for (const std::string& file : files) {
    KVTIER_ASSIGN_OR_RETURN(const std::string json, ReadWhole("answers", file));
    KVTIER_ASSIGN_OR_RETURN(QualityRun run, QualityRunFromJson(json));
    if (all.has_value()) {
      KVTIER_RETURN_IF_ERROR(MergeAnswers(run, *all));
    } else {
      all = std::move(run);
    }
  }
  return Report(*all);
}

}  // namespace kvtier
