#include "bench/quality/experiment.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <thread>  // NOLINT(build/c++11)
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "bench/evaluation.h"
#include "bench/quality/document_run.h"
#include "compressor/head_scores.h"
#include "compressor/value_output_norms.h"

namespace kvtier {
namespace {

constexpr size_t kHeadReferenceBytes = 1000;

absl::Status Named(const Task& task, size_t document, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(task.name, ", document ", document, ": ", status.message()));
}

// One document after another until there are enough samples: short ones may have fewer than
// Task::samples.
absl::StatusOr<std::vector<TaskDocument>> DrawDocuments(const Task& task, const TextSource& source,
                                                        const ExperimentOptions& options) {
  std::vector<TaskDocument> documents;
  for (size_t samples = 0; samples < std::max(options.samples, 1u);) {
    absl::StatusOr<TaskDocument> document = MakeTaskDocument(
        task, source, options.bytes, options.seed, static_cast<uint32_t>(documents.size()));
    if (!document.ok()) return Named(task, documents.size(), document.status());
    KVTIER_CHECK(!document->samples.empty());
    samples += document->samples.size();
    documents.push_back(*std::move(document));
  }
  return documents;
}

absl::StatusOr<BandEdges> EdgesOf(std::vector<Ratio> ratios) {
  const Ratio one;
  if (ratios.empty() || ratios.back() != one) ratios.push_back(one);
  return BandEdges::Create(ratios);
}

// Appends a document's answers to its task's result.
void Append(const DocumentAnswers& answers, uint32_t document, TaskResult& result) {
  if (result.cells.empty()) {
    result.cells = answers.cells;
  } else {
    for (size_t c = 0; c < result.cells.size(); ++c) {
      const std::vector<uint8_t>& right = answers.cells[c].right;
      result.cells[c].right.insert(result.cells[c].right.end(), right.begin(), right.end());
    }
  }
  result.depth.insert(result.depth.end(), answers.depth.begin(), answers.depth.end());
  result.document.insert(result.document.end(), answers.depth.size(), document);
  ++result.documents;
}

// Recipe head's scores from a reference context of the same kind of text, none of the documents.
absl::StatusOr<HeadScores> MeasureHeadScores(const Model& model, const TextSource& source,
                                             uint64_t seed) {
  if (!model.profile().byte_vocabulary.has_value()) {
    return absl::InvalidArgumentError("the model's prompt profile declares no byte vocabulary");
  }
  std::mt19937_64 random(~seed);
  const std::vector<uint32_t> context =
      model.profile().byte_vocabulary->Encode(source.Cut(kHeadReferenceBytes, random));
  KVTIER_ASSIGN_OR_RETURN(const auto evaluation, Evaluation::Create(model, context));
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, evaluation->KvzipScores());
  return HeadScores::FromTable(scores, model.digest());
}

}  // namespace

absl::string_view SettingName(Setting setting) {
  return setting == Setting::kPerQuery ? "per_query" : "shared";
}

absl::string_view OriginName(Origin origin) {
  switch (origin) {
    case Origin::kFull:
      return "full";
    case Origin::kSelected:
      return "selected";
    case Origin::kBands:
      return "bands";
  }
  return "unknown";
}

absl::StatusOr<uint64_t> DocumentCount(const TextSource& source, const ExperimentOptions& options) {
  uint64_t count = 0;
  for (const Task* task : options.tasks) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<TaskDocument> documents,
                            DrawDocuments(*task, source, options));
    count += documents.size();
  }
  return count;
}

absl::StatusOr<std::vector<TaskResult>> RunExperiment(const Model& model, const TextSource& source,
                                                      const ExperimentOptions& options,
                                                      const std::function<void()>& on_document) {
  if (options.tasks.empty()) return absl::InvalidArgumentError("no tasks");
  KVTIER_ASSIGN_OR_RETURN(const BandEdges edges, EdgesOf(options.ratios));
  KVTIER_ASSIGN_OR_RETURN(const HeadScores head_scores,
                          MeasureHeadScores(model, source, options.seed));
  const LazyValueOutputNorms norms(model);
  const DocumentPlan plan{.model = model,
                          .edges = edges,
                          .methods = options.methods,
                          .inputs = {.head_scores = &head_scores, .norms = &norms}};

  struct Job {
    size_t task;
    uint32_t index;
    TaskDocument document;
    DocumentAnswers answers;
  };
  std::vector<Job> jobs;
  for (size_t t = 0; t < options.tasks.size(); ++t) {
    KVTIER_ASSIGN_OR_RETURN(std::vector<TaskDocument> documents,
                            DrawDocuments(*options.tasks[t], source, options));
    for (uint32_t d = 0; d < documents.size(); ++d) {
      jobs.push_back({t, d, std::move(documents[d]), {}});
    }
  }

  Mutex mutex;
  absl::Status failure;
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&]() -> absl::Status {
    for (size_t j = next++; j < jobs.size() && !failed; j = next++) {
      absl::StatusOr<DocumentAnswers> answers = AskDocument(plan, jobs[j].document);
      if (!answers.ok()) {
        return Named(*options.tasks[jobs[j].task], jobs[j].index, answers.status());
      }
      jobs[j].answers = *std::move(answers);
      if (on_document) on_document();
    }
    return absl::OkStatus();
  };
  const auto run = [&] {
    const absl::Status status = work();
    if (!status.ok()) failed = true;
    MutexLock lock(&mutex);
    failure.Update(status);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < options.threads; ++t) pool.emplace_back(run);
  run();
  for (std::thread& thread : pool) thread.join();
  KVTIER_RETURN_IF_ERROR(failure);

  std::vector<TaskResult> results(options.tasks.size());
  for (const Job& job : jobs) {
    results[job.task].task = options.tasks[job.task];
    Append(job.answers, job.index, results[job.task]);
  }
  return results;
}

}  // namespace kvtier
