#include "cuda/prepared_rows.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status_macros.h"
#include "cuda/attention_tensor.h"
#include "cuda/device_tables.h"
#include "cuda/launch_params.h"
#include "cuda/span_lists.h"

namespace kvtier {

absl::StatusOr<std::shared_ptr<const DevicePreparedRows>> DevicePreparedRows::Create(
    std::shared_ptr<Device> device, const std::vector<HeadSpans>& layers, DType dtype) {
  struct Places {
    size_t spans, begin, rows;
  };
  DeviceTables tables;
  std::vector<Places> places;
  std::shared_ptr<DevicePreparedRows> prepared(new DevicePreparedRows(std::move(device), dtype));
  for (const HeadSpans& heads : layers) {
    SpanLists lists;
    for (const std::span<const RowSpan>& head : heads) {
      for (const RowSpan& span : head) lists.Add(ToKeySpan(span));
      lists.EndHead();
    }
    places.push_back({tables.Add(lists.spans), tables.Add(lists.begin), tables.Add(lists.rows)});
    Layer& layer = prepared->layers_.emplace_back();
    layer.tensor_fits = std::all_of(lists.spans.begin(), lists.spans.end(), TensorSpanFits);
    layer.rows_of_heads = std::move(lists.rows);
  }
  KVTIER_RETURN_IF_ERROR(tables.Upload(prepared->device_));
  for (size_t i = 0; i < places.size(); ++i) {
    Layer& layer = prepared->layers_[i];
    layer.spans = tables.At<KeySpan>(places[i].spans);
    layer.span_begin = tables.At<int64_t>(places[i].begin);
    layer.head_rows = tables.At<int64_t>(places[i].rows);
  }
  prepared->tables_ = std::move(tables).TakeMemory();
  return std::shared_ptr<const DevicePreparedRows>(std::move(prepared));
}

absl::StatusOr<std::shared_ptr<const StepPlan>> DevicePreparedRows::PlanFor(
    const StepPlanKey& key) const {
  {
    MutexLock lock(&mutex_);
    if (const auto* found = plans_.Find(key); found != nullptr) return *found;
  }
  // Not under the lock, as an upload may wait for the device. Two threads may both make it; then
  // the first one's is everybody's.
  KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<const StepPlan> made, MakePlan(key));
  std::optional<std::shared_ptr<const StepPlan>> dropped;  // After the lock: frees device memory.
  MutexLock lock(&mutex_);
  if (const auto* found = plans_.Find(key); found != nullptr) return *found;
  dropped = plans_.TakeOldestIfFull();
  return plans_.Insert(key, std::move(made));
}

absl::StatusOr<std::shared_ptr<const StepPlan>> DevicePreparedRows::MakePlan(
    const StepPlanKey& key) const {
  struct Places {
    size_t items, merges;
  };
  DeviceTables tables;
  std::vector<Places> places;
  auto made = std::make_shared<StepPlan>();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const PlannedLayer& planned = key.layers[i];
    AttentionShape shape{.query_rows = 1,
                         .group = key.group,
                         .head_rows = layers_[i].rows_of_heads,
                         .rows_fewer = kTailBucketRows - 1,
                         .window = planned.window,
                         .items_wanted = ItemsWanted(*device_),
                         .query_tile = planned.query_tile};
    for (int64_t& rows : shape.head_rows) rows += (key.bucket + 1) * kTailBucketRows;
    const AttentionPlan plan = PlanAttention(shape);
    places.push_back({tables.Add(plan.items), tables.Add(plan.merges)});
    made->part_rows = std::max(made->part_rows, plan.slots * planned.query_tile);
    made->layers.push_back({.item_count = static_cast<int64_t>(plan.items.size()),
                            .merge_count = static_cast<int64_t>(plan.merges.size())});
  }
  KVTIER_RETURN_IF_ERROR(tables.Upload(device_));
  for (size_t i = 0; i < places.size(); ++i) {
    made->layers[i].items = tables.At<AttentionItem>(places[i].items);
    made->layers[i].merges = tables.At<AttentionMerge>(places[i].merges);
  }
  made->tables = std::move(tables).TakeMemory();
  return std::shared_ptr<const StepPlan>(std::move(made));
}

}  // namespace kvtier
