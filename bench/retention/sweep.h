// The comparison of kvtier-bench retention: every scheme at every capacity, and whether objects
// that degrade band by band do what they are for: at every capacity at least as well as the best
// fixed ratio would have done there, without being told which that is.
#ifndef KVTIER_BENCH_RETENTION_SWEEP_H_
#define KVTIER_BENCH_RETENTION_SWEEP_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "bench/retention/quality_curve.h"
#include "bench/retention/request_trace.h"

namespace kvtier::bench {

// Schemes, in the order of the rows:
//   banded_gdsf, banded_lru   objects of six bands (0.1 to 1.0), offered whole, degrading
//   whole_R_lru               objects of one fixed ratio R (1.0, 0.6, 0.3, 0.1), there or not
//   whole_R_gdsf              the same in the other order: what ordering alone brings
//   dense_blocks_lru          deduplicated dense blocks
// Columns: hits, weighted (by the curve), bytes_moved; hits_steep, weighted_steep,
// bytes_moved_steep once more under QualityCurve::Steep(), which the banded schemes and gdsf act
// upon.
struct RetentionRow {
  std::string scheme;
  uint64_t capacity_bytes = 0;
  std::string column;
  double value = 0;  // Share of the blocks asked for; bytes_moved in GB (1e9 bytes).
  // Shares: what a cache in which everything fits gives. 0 for bytes.
  double limit = 0;
  // Weighted columns of the banded schemes: kBestShare of the best whole_R_lru at this capacity, or
  // kLowBestShare of it where that best is under half of the limit.
  std::optional<double> target = std::nullopt;
  // Whether kvtier-bench --check insists on the target: for gdsf, the policy to use. LRU shows what
  // banding alone does.
  bool required = false;

  bool pass() const { return !target.has_value() || value >= *target; }
  // "<scheme>/<capacity>/<column>", the capacity as CapacityName.
  std::string name() const;
};

inline constexpr double kBestShare = 0.99;
inline constexpr double kLowBestShare = 1.1;

// "64GiB"; with up to three decimals if it is no whole number of GiB.
std::string CapacityName(uint64_t bytes);

// Ten capacities, each twice the one before; the last holds every object of the trace whole.
std::vector<uint64_t> DefaultCapacities(const RequestTrace& trace);

// All rows, by capacity, scheme and column. `progress` is told the share done, in [0, 1].
absl::StatusOr<std::vector<RetentionRow>> SweepRetention(const RequestTrace& trace,
                                                         const QualityCurve& curve,
                                                         const std::vector<uint64_t>& capacities,
                                                         absl::FunctionRef<void(double)> progress);

// A table of every scheme for each of the two weighted columns and the hits, and what the banded
// ones reach against the best fixed ratio.
std::string RetentionTable(const std::vector<RetentionRow>& rows);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_RETENTION_SWEEP_H_
