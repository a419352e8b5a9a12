// Repeated timing. Machines are noisy: whatever is compared runs in turns, round by round, so that
// a disturbance meets all of it, and medians are taken.
#ifndef KVTIER_BENCH_TIMING_H_
#define KVTIER_BENCH_TIMING_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvtier::bench {

// Seconds of the wall clock that `run` takes.
absl::StatusOr<double> Seconds(const std::function<absl::Status()>& run);

// Median seconds of `runs` calls, after one that is not counted.
absl::StatusOr<double> MedianSeconds(int runs, const std::function<absl::Status()>& run);

// REQUIRES: not empty. The upper one of two in the middle.
double Median(std::vector<double> values);

// REQUIRES: not empty. The value that `share` of all do not exceed.
double Percentile(std::vector<double> values, double share);

// One of the things that are compared.
struct Contender {
  // One measurement: its figures, as many every time (seconds, CPU seconds, ...).
  std::function<absl::StatusOr<std::vector<double>>()> run;
};
// The median of every figure of every contender over `runs` rounds, after one that is not counted.
absl::StatusOr<std::vector<std::vector<double>>> MediansInTurns(
    int runs, const std::vector<Contender>& contenders);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_TIMING_H_
