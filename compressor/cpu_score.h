// CpuBackend's KVzip score: one product of queries and keys. The logits of a tile of queries and
// the scored chunk stay in a core's cache until the tile's normalisers are known, then each
// column's maximum is taken from them; logits of all queries never exist.
#ifndef KVTIER_COMPRESSOR_CPU_SCORE_H_
#define KVTIER_COMPRESSOR_CPU_SCORE_H_

#include "absl/status/status.h"
#include "compressor/backend.h"
#include "compressor/cpu_tiles.h"

namespace kvtier {

// As Backend::ScoreColumnMax, with arguments that fit each other and at least one column. Results
// do not depend on the number of threads. RESOURCE_EXHAUSTED: no memory for scratch. Thread-safe.
absl::Status RunCpuScore(const ScoreArgs& args, const CpuResources& resources);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_SCORE_H_
