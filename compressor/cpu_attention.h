// CpuBackend's attention: blocked over queries and keys with an online softmax, never more than a
// tile of logits at once.
#ifndef KVTIER_COMPRESSOR_CPU_ATTENTION_H_
#define KVTIER_COMPRESSOR_CPU_ATTENTION_H_

#include "absl/status/status.h"
#include "compressor/backend.h"
#include "compressor/cpu_tiles.h"

namespace kvtier {

// As Backend::Attention, with arguments that fit each other. A few queries (decoding) over many
// keys are cut into parts of keys and computed in fp32; the cut depends on the shapes alone, so
// that the number of threads does not change results. RESOURCE_EXHAUSTED: no memory for scratch.
// Thread-safe.
absl::Status RunCpuAttention(const AttentionArgs& args, const CpuResources& resources);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_ATTENTION_H_
