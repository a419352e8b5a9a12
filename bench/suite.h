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

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_SUITE_H_
