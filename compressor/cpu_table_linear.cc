#include "compressor/cpu_table_linear.h"

#include <algorithm>
#include <atomic>

#include "base/log.h"
#include "compressor/host_backend.h"

namespace kvtier {
namespace {

// Rows of the table per task: at 1,024 features of bf16 they stay in the second-level cache while
// all rows of x pass.
constexpr int64_t kTaskRows = 256;
constexpr int64_t kTileRows = 64;

class CpuTable final : public LinearWeights {
 public:
  explicit CpuTable(const TensorView& table) : table_(table) {}
  int64_t in_features() const override { return table_.cols; }
  int64_t out_features() const override { return table_.rows; }
  uint64_t bytes() const override { return 0; }  // The table's owner counts them.
  const TensorView& table() const { return table_; }

 private:
  const TensorView table_;
};

// logits [rows, kTileRows] of up to kFewQueries rows of x with `count` rows of the table.
void MultiplyTile(const CpuKernels& kernels, const float* x, int64_t rows, int64_t dim,
                  const std::byte* table, KvElement element, int64_t count, float* expanded,
                  float* logits) {
  if (dim % kKernelPad == 0) {
    kernels.few_logits(x, rows, dim, table, element, count, logits, kTileRows);
    return;
  }
  kernels.load_transposed(table, element, count, dim, expanded, kTileRows);
  kernels.multiply(x, dim, expanded, kTileRows, logits, kTileRows, rows, kTileRows, dim,
                   /*accumulate=*/false);
}

}  // namespace

std::unique_ptr<LinearWeights> ShareCpuTable(const TensorView& table) {
  return std::make_unique<CpuTable>(table);
}

bool IsCpuTable(const LinearWeights& weights) {
  return dynamic_cast<const CpuTable*>(&weights) != nullptr;
}

void ReadCpuTable(const LinearWeights& weights, std::span<float> to) {
  const auto* shared = dynamic_cast<const CpuTable*>(&weights);
  KVTIER_CHECK(shared != nullptr);
  LoadFloats(static_cast<const std::byte*>(shared->table().data), shared->table().dtype, to);
}

absl::Status RunCpuTable(TensorView x, const LinearWeights& weights, TensorView y,
                         const CpuResources& resources) {
  const auto* shared = dynamic_cast<const CpuTable*>(&weights);
  KVTIER_CHECK(shared != nullptr);
  const TensorView& table = shared->table();
  const int64_t dim = table.cols;
  const int64_t row_bytes = dim * DTypeBytes(table.dtype);
  const auto* from = static_cast<const std::byte*>(table.data);
  std::atomic<bool> no_memory{false};
  resources.pool.For(DivideUp(table.rows, kTaskRows), [&](int64_t task) {
    ScratchPool::Lease memory = resources.scratch.Borrow((kFewQueries + dim) * kTileRows);
    if (memory.data() == nullptr) {
      no_memory.store(true, std::memory_order_relaxed);
      return;
    }
    float* const logits = memory.data();
    float* const expanded = logits + kFewQueries * kTileRows;
    const int64_t end = std::min(table.rows, (task + 1) * kTaskRows);
    for (int64_t first = 0; first < x.rows; first += kFewQueries) {
      const int64_t rows = std::min(kFewQueries, x.rows - first);
      for (int64_t column = task * kTaskRows; column < end; column += kTileRows) {
        const int64_t count = std::min(kTileRows, end - column);
        MultiplyTile(resources.kernels, static_cast<const float*>(x.data) + first * dim, rows, dim,
                     from + column * row_bytes, ElementOf(table.dtype), count, expanded, logits);
        for (int64_t r = 0; r < rows; ++r) {
          std::copy_n(logits + r * kTileRows, count,
                      static_cast<float*>(y.data) + (first + r) * y.cols + column);
        }
      }
    }
  });
  if (no_memory) return absl::ResourceExhaustedError("linear: no memory for scratch");
  return absl::OkStatus();
}

}  // namespace kvtier
