// A run of benchmarks that may be cut off: rows in order of value, each written to a file as soon
// as it is measured, so that the next run goes on behind the last one. What the rows measure:
// bench_cases.h.
//
// The file is one JSON object per line:
//   {"build": "crc32c 0x1A2B3C4D", "device": "NVIDIA H200", "name": "decode/...",
//    "figures": {"seconds": 0.001, ...}}
//   {"build": ..., "device": ..., "name": "rank/...", "error": "RESOURCE_EXHAUSTED: ..."}
// A row stands for the build and the device that measured it: another build, or another device,
// measures it again behind it.
#ifndef KVTIER_TESTS_GPU_BENCH_RUN_H_
#define KVTIER_TESTS_GPU_BENCH_RUN_H_

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvtier {

// By name; the unit ends the name ("seconds", "copy_share").
using Figures = std::map<std::string, double>;

struct BenchRow {
  std::string name;  // Unique.
  std::function<absl::StatusOr<Figures>()> measure;
};

struct BenchOptions {
  std::string build;   // What is measured: rows of another build are not this run's (BuildOf).
  std::string device;  // Nor are those of another device.
  std::string file;    // Empty: rows are kept nowhere.
  bool resume = false;
};

struct BenchReport {
  int measured = 0;
  int failed = 0;
  int skipped = 0;  // Measured by an earlier run.
};

// The build that a program is: a check value of its bytes, which tells builds with other code in
// them apart, also of one version. UNKNOWN: it cannot be read.
absl::StatusOr<std::string> BuildOf(const std::string& program);

// Names of the rows in `file` that this build measured on this device; those that failed are not
// among them, nor rows that do not say their build.
// A last line that was cut off is passed over. NOT_FOUND: no file. INVALID_ARGUMENT: another line
// that is no row, named.
absl::StatusOr<std::set<std::string>> ReadMeasured(const std::string& file,
                                                   const std::string& build,
                                                   const std::string& device);

// Measures the rows in order and prints each. A row that fails is noted and the run goes on; one
// with a figure that is no finite number has failed. A last line that was cut off is cut from the
// file, nothing else of it is written again.
//   ALREADY_EXISTS     the file is there and `resume` is not set: nothing is written over
//   INVALID_ARGUMENT   as ReadMeasured; `resume` without a file; a name that comes twice
//   UNKNOWN            the file cannot be written
absl::StatusOr<BenchReport> RunBench(const std::vector<BenchRow>& rows,
                                     const BenchOptions& options);

}  // namespace kvtier

#endif  // KVTIER_TESTS_GPU_BENCH_RUN_H_
