// What the suites of kvtier-bench share: repeated timing and how a figure is shown.
#ifndef KVTIER_BENCH_SUITE_H_
#define KVTIER_BENCH_SUITE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvtier::bench {

// One measured figure. `ceiling` is what the machine allows, measured in the same run; 0: none.
struct Figure {
  std::string name;
  double value = 0;
  std::string unit;
  double ceiling = 0;
  std::string ceiling_name = "";
};

// Median seconds of `runs` calls, after one that is not counted.
absl::StatusOr<double> MedianSeconds(int runs, const std::function<absl::Status()>& run);

struct ComputeOptions {
  std::string model_folder;
  std::string shape = "";  // Not empty: a random model of this shape (random_model.h) instead.
  int context_tokens = 0;
  int long_tokens = 0;  // Not 0: a random context of this length too, on the shape two-layers.
  int runs = 5;
};
// Prefill, scoring, ranking and decoding of a model beside what oneDNN reaches at the shapes of its
// linear layers; peak memory; scores of a long context beside the reference backend's.
// INTERNAL: a long context's scores differ from the reference's.
absl::StatusOr<std::vector<Figure>> RunComputeSuite(const ComputeOptions& options);
// Fetch of one object through gRPC beside a raw TCP connection, both on loopback.
absl::StatusOr<std::vector<Figure>> RunTransferSuite(int megabytes, int runs);

struct RetentionOptions {
  std::string trace;  // Files: bench/retention/request_trace.h, quality_curve.h.
  std::string curve;
  std::vector<double> capacities_gib = {};  // None: DefaultCapacities of the trace.
  bool json = false;
};
// Caches of several capacities under a trace of requests: prints its own rows to stdout, since each
// is a count, not a timing. True if every row that must reach a target does; the others are named
// on stderr.
absl::StatusOr<bool> RunRetentionSuite(const RetentionOptions& options);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_SUITE_H_
