// How much a cached value writes into the residual stream: ||W_O^(h,g) v||, the factor that recipe
// kvzip+ gives each (query head, key). W_O^(h,g) is the [hidden, head_dim] part of the output
// projection of query head h * group + g (docs/recipes.md, "The definitions": kvzip+).
//
// Projecting every value costs hidden * head_dim per query head; with M = W^T W, made once per
// model, ||W v|| = sqrt(v^T M v) costs head_dim^2. M is kept in fp32: layers * q_heads *
// head_dim^2 * 4 bytes, 67 MB for Llama-3.1-8B.
#ifndef KVTIER_COMPRESSOR_VALUE_OUTPUT_NORMS_H_
#define KVTIER_COMPRESSOR_VALUE_OUTPUT_NORMS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/cancel_token.h"
#include "base/mutex.h"
#include "compressor/backend.h"
#include "compressor/model.h"

namespace kvtier {

// Immutable after Create; any thread may call. Does not own the model, which must outlive it.
class ValueOutputNorms {
 public:
  // Reads W_O back from the backend, a layer at a time; hidden * head_dim^2 products per query
  // head.
  //   CANCELLED           asked for through `cancel`, which is looked at before each query head
  //   RESOURCE_EXHAUSTED  no memory for one layer's W_O in fp32, or the backend has none for M
  static absl::StatusOr<std::unique_ptr<const ValueOutputNorms>> Create(const Model& model,
                                                                        const CancelToken& cancel);
  // M, and one layer's W_O, which only Create holds.
  static uint64_t EstimateBytes(const ModelConfig& config);

  // log ||W_O^(h,g) v_j|| of rows [begin, end) of a layer's cache, into [q_heads, end - begin]
  // (host). A norm below 1e-30 counts as 1e-30, so that a value of zeros ranks last instead of
  // having no score. INVALID_ARGUMENT: sizes that do not fit, a sliding layer. RESOURCE_EXHAUSTED:
  // the backend has no memory for a step of at most 1,024 rows.
  absl::Status LogNorms(int64_t layer, const KvLayerView& cache, int64_t begin, int64_t end,
                        std::span<float> out) const;

 private:
  explicit ValueOutputNorms(const Model& model) : model_(&model) {}

  // [layers][kv_heads] (none in sliding layers, which are not scored), each [group * head_dim,
  // head_dim]: M of the group's query heads, stacked.
  using GroupWeights = std::vector<std::unique_ptr<LinearWeights>>;
  const Model* model_;
  std::vector<GroupWeights> layers_;
};

// The norms of one model, made when first asked for. Thread-safe; two first callers at once may
// both make them, one result stays. Does not own the model.
class LazyValueOutputNorms {
 public:
  explicit LazyValueOutputNorms(const Model& model) : model_(&model) {}
  // Errors as Create; a later call tries again. The result lives as long as this object.
  absl::StatusOr<const ValueOutputNorms*> Get(const CancelToken& cancel) const;

 private:
  const Model* model_;
  mutable Mutex mutex_;
  mutable std::unique_ptr<const ValueOutputNorms> norms_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_VALUE_OUTPUT_NORMS_H_
