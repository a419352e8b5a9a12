#include "tests/conformance/plain_fused_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "base/half.h"
#include "cuda/cudnn_shape.h"

namespace kvtier {
namespace {

class PlainFusedAttention final : public FusedAttention {
 public:
  explicit PlainFusedAttention(std::shared_ptr<FusedAttentionLog> log) : log_(std::move(log)) {}
  bool Takes(const FusedAttentionParams& params) const override {
    return log_->takes == nullptr || log_->takes(params);
  }
  // As cuDNN, so that caches have rows that nobody has written.
  int64_t CacheRows(int64_t rows) const override { return CudnnCacheRows(rows); }
  absl::Status Run(const FusedAttentionParams& params) override {
    log_->Add(params);
    if (log_->result != nullptr) {
      absl::Status status = log_->result(params);
      if (!status.ok()) return status;
    }
    RunPlainFusedAttention(params);
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<FusedAttentionLog> log_;
};

double At(const void* elements, int64_t index) {
  return static_cast<float>(static_cast<const bfloat16*>(elements)[index]);
}

}  // namespace

void RunPlainFusedAttention(const FusedAttentionParams& p) {
  const int64_t heads = p.kv_heads * p.group;
  std::vector<double> weights;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t end = p.causal ? p.key_rows - p.rows + row + 1 : p.key_rows;
    const int64_t begin = p.window == 0 ? 0 : std::max<int64_t>(0, end - p.window);
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = (row * heads + head) * p.head_dim;
      const int64_t first_key = head / p.group * p.head_rows;
      weights.assign(end - begin, 0);
      double largest = -INFINITY;
      for (int64_t key = begin; key < end; ++key) {
        double product = 0;
        for (int64_t d = 0; d < p.head_dim; ++d) {
          product += At(p.q, at + d) * At(p.keys, (first_key + key) * p.head_dim + d);
        }
        weights[key - begin] = product * p.scale;
        largest = std::max(largest, weights[key - begin]);
      }
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      for (int64_t d = 0; d < p.head_dim; ++d) {
        double out = 0;
        for (int64_t key = begin; key < end; ++key) {
          out += weights[key - begin] * At(p.values, (first_key + key) * p.head_dim + d);
        }
        static_cast<bfloat16*>(p.out)[at + d] = bfloat16(static_cast<float>(out / sum));
      }
      if (p.lse != nullptr)
        p.lse[head * p.rows + row] = static_cast<float>(largest + std::log(sum));
    }
  }
}

std::unique_ptr<FusedAttention> MakePlainFusedAttention(std::shared_ptr<FusedAttentionLog> log) {
  return std::make_unique<PlainFusedAttention>(std::move(log));
}

}  // namespace kvtier
