// A library's attention that keeps count of what it did, for whoever shows it (LibraryCounters).
#ifndef KVTIER_CUDA_COUNTED_ATTENTION_H_
#define KVTIER_CUDA_COUNTED_ATTENTION_H_

#include <memory>
#include <utility>

#include "compressor/backend.h"
#include "cuda/fused_attention.h"

namespace kvtier {

// Thread-safe as the attention that it counts, which is not null.
class CountedAttention final : public FusedAttention {
 public:
  explicit CountedAttention(std::unique_ptr<FusedAttention> inner) : inner_(std::move(inner)) {}

  bool Takes(const FusedAttentionParams& params) const override { return inner_->Takes(params); }
  int64_t CacheRows(int64_t rows) const override { return inner_->CacheRows(rows); }
  absl::Status Run(const FusedAttentionParams& params) override {
    absl::Status status = inner_->Run(params);
    if (status.ok()) ++counters_->attention_calls;
    // Which ends the attention: of two calls the other one is not made, or was made for nothing.
    if (absl::IsUnimplemented(status)) ++counters_->attention_fallbacks;
    return status;
  }

  std::shared_ptr<const LibraryCounters> counters() const { return counters_; }

 private:
  const std::unique_ptr<FusedAttention> inner_;
  const std::shared_ptr<LibraryCounters> counters_ = std::make_shared<LibraryCounters>();
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_COUNTED_ATTENTION_H_
