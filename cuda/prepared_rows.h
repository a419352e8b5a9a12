// An object's rows in device memory as the attention of single tokens reads them: the spans of all
// its layers, brought over once, and the plans over them (cuda/math/attention_plan.h), each made
// and brought over once for a range of tail lengths. What all steps of one object share.
#ifndef KVTIER_CUDA_PREPARED_ROWS_H_
#define KVTIER_CUDA_PREPARED_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "compressor/decode_step.h"
#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/math/attention_plan.h"
#include "cuda/plan_cache.h"

namespace kvtier {

// A plan holds for so many lengths of the tail, from a multiple of it on: the fewest keys that are
// worth a block, so that at most one block per head finds nothing to do.
inline constexpr int64_t kTailBucketRows = kPartKeysMin;

// What a step must know of a layer before it can be planned.
struct PlannedLayer {
  int64_t window = 0;  // 0: none.
  int64_t query_tile = kQueryTile;
  auto operator<=>(const PlannedLayer&) const = default;
};

struct StepPlanKey {
  int64_t bucket =
      0;              // The tail has rows [bucket, bucket + 1) * kTailBucketRows, plus the token's.
  int64_t group = 0;  // Query heads per KV head.
  std::vector<PlannedLayer> layers;
  auto operator<=>(const StepPlanKey&) const = default;
};

// Immutable. One token's items and merges in every layer.
struct StepPlan {
  struct Layer {
    const AttentionItem* items = nullptr;  // Device memory, of `tables`.
    const AttentionMerge* merges = nullptr;
    int64_t item_count = 0;
    int64_t merge_count = 0;
  };
  std::vector<Layer> layers;
  int64_t part_rows = 0;  // The most that a layer needs: slots times query tile.
  DeviceMemory tables;
};

// Thread-safe.
class DevicePreparedRows final : public PreparedRows {
 public:
  // RESOURCE_EXHAUSTED: no memory for the spans. REQUIRES: Device::Enter() on this thread.
  static absl::StatusOr<std::shared_ptr<const DevicePreparedRows>> Create(
      std::shared_ptr<Device> device, const std::vector<HeadSpans>& layers, DType dtype);

  struct Layer {
    const KeySpan* spans = nullptr;  // Device memory; all heads'.
    const int64_t* span_begin = nullptr;
    const int64_t* head_rows = nullptr;
    bool tensor_fits = false;            // TensorSpanFits() for each of them.
    std::vector<int64_t> rows_of_heads;  // [kv_heads], on the host
  };
  const Layer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  int64_t layer_count() const { return static_cast<int64_t>(layers_.size()); }
  DType dtype() const { return dtype_; }
  const Device& device() const { return *device_; }

  // The plan of that key: one that was made before, or made and enqueued for upload now; the last
  // kPlansKept stay. RESOURCE_EXHAUSTED: no memory. REQUIRES: as many layers; Device::Enter() on
  // this thread.
  absl::StatusOr<std::shared_ptr<const StepPlan>> PlanFor(const StepPlanKey& key) const;

 private:
  // 2048 tokens of a tail. One takes about 40 bytes an item of a layer: 1 MB for 32 layers on a
  // device of 132 multiprocessors.
  static constexpr size_t kPlansKept = 8;

  DevicePreparedRows(std::shared_ptr<Device> device, DType dtype)
      : device_(std::move(device)), dtype_(dtype) {}
  absl::StatusOr<std::shared_ptr<const StepPlan>> MakePlan(const StepPlanKey& key) const;

  const std::shared_ptr<Device> device_;
  const DType dtype_;
  std::vector<Layer> layers_;
  DeviceMemory tables_;
  mutable Mutex mutex_;
  mutable PlanCache<StepPlanKey, std::shared_ptr<const StepPlan>> plans_ ABSL_GUARDED_BY(mutex_){
      kPlansKept};
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_PREPARED_ROWS_H_
