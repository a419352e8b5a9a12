// A long context on a small model: that it completes, and that its scores are right.
#ifndef KVTIER_BENCH_LONG_CONTEXT_H_
#define KVTIER_BENCH_LONG_CONTEXT_H_

#include <vector>

#include "absl/status/statusor.h"
#include "bench/suite.h"

namespace kvtier::bench {

// Prefills and scores `tokens` random tokens on the random model two-layers, then scores the last
// whole chunk of some (layer, KV head) pairs again on the reference backend, from the same queries
// and keys. Rows: seconds and the largest difference. INTERNAL: they differ by more than 1e-3 (a
// log score; sums of a few thousand terms in fp32).
absl::StatusOr<std::vector<Row>> RunLongContext(int tokens);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_LONG_CONTEXT_H_
