// Runs the tasks of kvtier-eval quality over the methods: every sample is asked under every method,
// so that all differences are paired.
//
// Two settings. `per_query`: each question compresses its own cache. `shared`: one compressed cache
// serves all questions of a document; methods that look at a question are fitted to the first one.
#ifndef KVTIER_BENCH_QUALITY_EXPERIMENT_H_
#define KVTIER_BENCH_QUALITY_EXPERIMENT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "bench/quality/methods.h"
#include "bench/quality/tasks.h"
#include "bench/quality/text_source.h"
#include "compressor/model.h"
#include "kvcache/bands.h"

namespace kvtier {

enum class Setting { kPerQuery, kShared };
absl::string_view SettingName(Setting setting);  // "per_query", "shared"

// Where a cell's rows came from.
enum class Origin {
  kFull,      // The full cache: also every method at ratio 1, where nothing is evicted.
  kSelected,  // Rows chosen from the dense cache at exactly this ratio.
  kBands,     // An object packed at the default band edges and read as a worker reads it.
};
absl::string_view OriginName(Origin origin);  // "full", "selected", "bands"

// One method at one ratio on one task: who answered what.
struct Cell {
  std::string method;  // Of Method::name, or "full".
  Ratio ratio;
  Setting setting = Setting::kShared;
  std::string codec = "raw";
  Origin origin = Origin::kSelected;
  std::vector<uint8_t> right;  // [samples] 0 or 1
};

struct TaskResult {
  const Task* task = nullptr;
  uint32_t documents = 0;
  std::vector<uint32_t> document;  // [samples] ascending
  std::vector<double> depth;       // [samples] as Sample::depth
  std::vector<Cell> cells;         // The full cache's two first.
};

struct ExperimentOptions {
  std::vector<Ratio> ratios;       // Ascending; the last is 1, which is added if it lacks.
  std::vector<const Task*> tasks;  // Not empty.
  std::vector<const Method*> methods;
  uint32_t samples = 1000;  // At least so many per cell: whole documents are asked.
  size_t bytes = 800;       // Of a document.
  uint64_t seed = 1;
  int threads = 1;  // Documents worked on at once.
};

// Documents that `options` asks for, in all tasks: the steps of on_document. Draws them, which
// takes no time beside asking. INVALID_ARGUMENT as MakeTaskDocument, naming task and document.
absl::StatusOr<uint64_t> DocumentCount(const TextSource& source, const ExperimentOptions& options);

// Blocks until done; `on_document` (may be empty) is called from any thread after each document.
// The same options, source and model give the same cells, whatever `threads` is.
// INVALID_ARGUMENT: no byte vocabulary, no tasks, more ratios than a band assignment holds; as
// MakeTaskDocument and Evaluation::Create.
absl::StatusOr<std::vector<TaskResult>> RunExperiment(const Model& model, const TextSource& source,
                                                      const ExperimentOptions& options,
                                                      const std::function<void()>& on_document);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_EXPERIMENT_H_
