// Which calls of a fused attention give the attention of a backend: one where all keys of a head
// lie together (a prefill; a tail behind its context), two where they are two such runs (the repeat
// pass: the context's cache, and the repeat rows' own). The results of two are then merged
// (cuda/merge_attention.h).
#ifndef KVTIER_CUDA_FUSED_CALLS_H_
#define KVTIER_CUDA_FUSED_CALLS_H_

#include <vector>

#include "compressor/backend.h"
#include "cuda/fused_attention.h"

namespace kvtier {

// Without out and lse. Of two, the first is over the spans, which every row sees whole, and the
// second over the tail. Empty: not so to be had; heads of uneven lengths or several spans, coded
// rows, other types than bf16, a window over two runs.
// REQUIRES: arguments that CheckedBackend has checked.
std::vector<FusedAttentionParams> FusedCalls(const AttentionArgs& args);

// Query rows whose number hardly another call has (AttentionArgs::odd_rows) as calls of 2^k rows,
// k falling, and at last what is left, fewer than kCudnnQueryRowsMin: a library that makes
// something for every number of rows makes it for few. Together they are the same attention. Other
// calls stay one.
std::vector<AttentionArgs> CommonRowCalls(const AttentionArgs& args);

}  // namespace kvtier

#endif  // KVTIER_CUDA_FUSED_CALLS_H_
