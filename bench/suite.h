// What the suites of kvtier-bench share: the row that every figure becomes, with the limit that was
// measured beside it and the target it is held against; and the suites themselves.
//
// A suite returns its rows; kvtier_bench.cc prints them, writes the JSON file and judges --check.
#ifndef KVTIER_BENCH_SUITE_H_
#define KVTIER_BENCH_SUITE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier::bench {

// What a row must reach.
struct Target {
  enum class Of { kLimit, kValue };  // A share of the row's limit; the value itself.
  enum class Sense { kAtLeast, kAtMost };
  double bound = 0;
  Of of = Of::kLimit;
  Sense sense = Sense::kAtLeast;
  // Whether --check insists on it.
  bool is_required = true;

  static Target ShareOfLimit(double least) { return {least, Of::kLimit, Sense::kAtLeast}; }
  static Target AtLeast(double least) { return {least, Of::kValue, Sense::kAtLeast}; }
  static Target AtMost(double most) { return {most, Of::kValue, Sense::kAtMost}; }
};

// One figure. The limit is what the machine or the peer named does, measured in the same run.
struct Row {
  std::string name;
  double value = 0;
  std::string unit;
  double limit = 0;  // 0: none. In the unit of the value.
  std::string limit_name = "";
  std::optional<Target> target = std::nullopt;
  std::string suite = "";         // Filled in by the frame.
  std::string not_measured = "";  // Why there is no value; such a row does not pass.

  bool measured() const { return not_measured.empty(); }
  std::optional<double> of_limit() const;  // value / limit.
  // Nothing without a target.
  std::optional<bool> pass() const;
};

// A row that could not be measured, and why.
Row NotMeasured(std::string name, std::string unit, std::optional<Target> target, std::string why);

struct SuiteResult {
  std::vector<Row> rows;
  // Printed instead of the table of the rows, where the suite has a better one.
  std::string table = "";
  // Printed below it.
  std::string note = "";
  // What was measured on ("requests": 600), for the JSON file.
  std::vector<std::pair<std::string, double>> facts = {};
};

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
absl::StatusOr<SuiteResult> RunComputeSuite(const ComputeOptions& options);

// What the suites over a running kvtier-store have in common. They start the one that lies beside
// kvtier-bench.
struct StoreSuiteOptions {
  std::string folder = "";  // Where data folders are made (and removed); empty: the system's.
  uint64_t object_bytes = uint64_t{256} << 20;
  int runs = 5;
  bool is_quick = false;  // Small and few: shows that the suite runs, not how fast.
};
// Fetch and Put over gRPC and TCP, host tier, beside one raw TCP connection.
absl::StatusOr<SuiteResult> RunTransferSuite(const StoreSuiteOptions& options);
// Fetch through memory shared with the store, read in place, beside memcpy and the fetch over TCP.
absl::StatusOr<SuiteResult> RunShmSuite(const StoreSuiteOptions& options);
// Fetches of 4 KiB, one after the other, beside 4 KiB over plain sockets.
absl::StatusOr<SuiteResult> RunGetSuite(const StoreSuiteOptions& options);
// Batches of prompts asked of a store with a million objects, beside plain sockets.
absl::StatusOr<SuiteResult> RunLookupSuite(const StoreSuiteOptions& options);
// Batches of small pages put and got, beside Redis.
absl::StatusOr<SuiteResult> RunPagesSuite(const StoreSuiteOptions& options);
// Put DISK while filling and after three turnovers, fetch from disk, beside O_DIRECT files.
absl::StatusOr<SuiteResult> RunDiskSuite(const StoreSuiteOptions& options);
// One context fetched at ratio 0.3 beside the dense cache out of Redis.
absl::StatusOr<SuiteResult> RunRedisSuite(const StoreSuiteOptions& options);
// 256 fetches at once from a store whose memory holds a tenth of what they ask for.
absl::StatusOr<SuiteResult> RunPressureSuite(const StoreSuiteOptions& options);

struct RetentionOptions {
  std::string trace;  // Files: bench/retention/request_trace.h, quality_curve.h.
  std::string curve;
  std::vector<double> capacities_gib = {};  // None: DefaultCapacities of the trace.
};
// Caches of several capacities under a trace of requests; each row is a count, not a timing.
absl::StatusOr<SuiteResult> RunRetentionSuite(const RetentionOptions& options);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_SUITE_H_
