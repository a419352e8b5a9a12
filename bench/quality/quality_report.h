// What kvtier-eval quality prints and writes: a table for people, CSV, and JSON for the figure.
// Plain functions: any thread may call.
#ifndef KVTIER_BENCH_QUALITY_QUALITY_REPORT_H_
#define KVTIER_BENCH_QUALITY_QUALITY_REPORT_H_

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "bench/quality/answers_file.h"
#include "bench/quality/experiment.h"
#include "bench/quality/intervals.h"

namespace kvtier {

// Two cells of one task, sample by sample: the mean of a - b.
struct Comparison {
  std::string task;
  std::string a;  // "kvzip at 0.3"
  std::string b;  // "full"
  Interval difference;
};

// Finds a cell; null if there is none. Unless `origin` is given, any will do.
const Cell* FindCell(const TaskResult& result, absl::string_view method, Ratio ratio,
                     Setting setting, absl::string_view codec = "raw",
                     std::optional<Origin> origin = std::nullopt);

// KVzip at 0.3 against the full cache, and in each case where both are there: int8 and int4 against
// raw, KVzip+ against KVzip at every ratio below 1, and the baselines at 0.9 (shared) against the
// full cache.
std::vector<Comparison> Compare(std::span<const TaskResult> results);

// The smallest ratio from which on, upwards, the 95 % interval of `method` minus full lies within
// `points` (0.02: two points) on this task, in the shared setting. Nothing if it never does.
std::optional<Ratio> LosslessFrom(const TaskResult& result, absl::string_view method,
                                  double points);

// Per task and setting: methods in rows, ratios in columns, right answers in percent; then the
// comparisons.
std::string QualityTable(std::span<const TaskResult> results);

// One line per cell. Columns: task, method, ratio, setting, codec, origin, score, low, high,
// samples, minus_full, minus_full_low, minus_full_high. The full cache minus itself is exactly 0.
// No line feed behind the last line.
std::string QualityCsv(std::span<const TaskResult> results);

// {"version": 1, "model": ..., "seed": ..., "document_bytes": ..., "text": {...}, "tasks": [...],
// "methods": [...], "rows": [one object per cell with the columns of the CSV], "comparisons":
// [...], "lossless_from": [...], "needle_depth": [...]}. A task's "correlation" is the
// IntraclassCorrelation behind its intervals.
std::string QualityJson(const QualityRun& run);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_QUALITY_REPORT_H_
