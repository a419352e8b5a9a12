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

// Prefill, scoring and decoding of a model beside the matrix-product rate of the backend.
absl::StatusOr<std::vector<Figure>> RunComputeSuite(const std::string& model_folder,
                                                    int context_tokens, int runs);
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
