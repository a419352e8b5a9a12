// A linear layer over the rows of a table that stays as it lies: the LM head of a model whose
// embeddings are tied, without a second copy of the largest tensor. In fp32 whatever the table's
// dtype: reading the table is what takes the time.
#ifndef KVTIER_COMPRESSOR_CPU_TABLE_LINEAR_H_
#define KVTIER_COMPRESSOR_CPU_TABLE_LINEAR_H_

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "compressor/backend.h"
#include "compressor/cpu_tiles.h"

namespace kvtier {

// y = x table^T; `table` is [out, in] and outlives the result.
std::unique_ptr<LinearWeights> ShareCpuTable(const TensorView& table);
bool IsCpuTable(const LinearWeights& weights);

// The table, [out, in]. REQUIRES: IsCpuTable(weights), to.size() == out * in.
void ReadCpuTable(const LinearWeights& weights, std::span<float> to);

// RESOURCE_EXHAUSTED: no memory for scratch. The result of a row depends on nothing but that row.
// REQUIRES: IsCpuTable(weights), x [rows, in] and y [rows, out] of fp32. Thread-safe.
absl::Status RunCpuTable(TensorView x, const LinearWeights& weights, TensorView y,
                         const CpuResources& resources);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CPU_TABLE_LINEAR_H_
