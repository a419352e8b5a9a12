// The answers of an experiment as a file, one bit per sample: long runs are kept, put together from
// parts (some methods now, others later), and reported again without asking anything.
//
//   {"version": 1, "model": ..., "model_digest": ..., "seed": ..., "document_bytes": ...,
//    "text": {"files": ..., "sha256": ...},
//    "tasks": [{"name": ..., "document_samples": [25, 25, ...], "depth": [0.13, ...]}],
//    "cells": [{"task": ..., "method": ..., "ratio": 0.3, "setting": "shared", "codec": "raw",
//               "origin": "selected", "right": "1101..."}]}
// Plain functions: any thread may call.
#ifndef KVTIER_BENCH_QUALITY_ANSWERS_FILE_H_
#define KVTIER_BENCH_QUALITY_ANSWERS_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "bench/quality/experiment.h"

namespace kvtier {

// Everything that answers depend on besides the cell.
struct QualitySource {
  std::string model;
  std::string model_digest;  // Hexadecimal.
  uint64_t seed = 0;
  uint64_t document_bytes = 0;
  uint64_t text_files = 0;
  std::string text_digest;
  friend bool operator==(const QualitySource&, const QualitySource&) = default;
};

struct QualityRun {
  QualitySource source;
  std::vector<TaskResult> tasks;
};

std::string QualityRunToJson(const QualityRun& run);
// INVALID_ARGUMENT naming the field: malformed, an unknown task, answers of another length.
absl::StatusOr<QualityRun> QualityRunFromJson(absl::string_view json);

// Adds the cells that `into` lacks. INVALID_ARGUMENT: other sources or samples, or a cell that both
// have with different answers.
absl::Status MergeAnswers(const QualityRun& from, QualityRun& into);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_ANSWERS_FILE_H_
