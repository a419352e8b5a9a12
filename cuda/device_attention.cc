#include "cuda/device_attention.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/status_macros.h"
#include "cuda/attention.h"
#include "cuda/attention_tensor.h"
#include "cuda/device_tables.h"
#include "cuda/fused_calls.h"
#include "cuda/launch_params.h"
#include "cuda/math/key_tile.h"
#include "cuda/merge_attention.h"
#include "cuda/score.h"
#include "cuda/score_tensor.h"
#include "cuda/span_lists.h"

namespace kvtier {
namespace {

static_assert(kAttentionHeadDimMax >= limits::kHeadDimMax, "every head_dim has a kernel");

// Plans and launches; fills in the tables, parts and items of `params`.
absl::Status Launch(AttentionParams params, const SpanLists& lists,
                    const std::shared_ptr<Device>& device) {
  const bool tensor = AttentionTensorFits(params) &&
                      std::all_of(lists.spans.begin(), lists.spans.end(), TensorSpanFits);
  const int64_t query_tile = tensor ? TensorQueryTile(params) : kQueryTile;
  const AttentionPlan plan = PlanAttention({.query_rows = params.query_rows,
                                            .group = params.group,
                                            .head_rows = lists.rows,
                                            .window = params.window,
                                            .items_wanted = ItemsWanted(*device),
                                            .query_tile = query_tile});
  DeviceTables tables;
  const size_t spans = tables.Add(lists.spans);
  const size_t begin = tables.Add(lists.begin);
  const size_t rows = tables.Add(lists.rows);
  const size_t items = tables.Add(plan.items);
  const size_t merges = tables.Add(plan.merges);
  KVTIER_RETURN_IF_ERROR(tables.Upload(device));
  const uint64_t part_rows = static_cast<uint64_t>(plan.slots * query_tile);
  DeviceMemory part_out;
  if (params.out != nullptr) {
    KVTIER_ASSIGN_OR_RETURN(
        part_out, DeviceMemory::Allocate(device, part_rows * params.head_dim * sizeof(float)));
  }
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory part_lse,
                          DeviceMemory::Allocate(device, part_rows * sizeof(float)));
  params.spans = tables.At<KeySpan>(spans);
  params.span_begin = tables.At<int64_t>(begin);
  params.head_rows = tables.At<int64_t>(rows);
  params.items = tables.At<AttentionItem>(items);
  params.merges = tables.At<AttentionMerge>(merges);
  params.item_count = static_cast<int64_t>(plan.items.size());
  params.merge_count = static_cast<int64_t>(plan.merges.size());
  params.part_out = part_out.as<float>();
  params.part_lse = part_lse.as<float>();
  return device->Check(tensor ? LaunchAttentionTensor(params, device->stream())
                              : LaunchAttention(params, device->stream()),
                       "attention");
}

// log2 of the normaliser of every packed query row of a score: [kv_heads, rows * group].
absl::StatusOr<DeviceMemory> Normalisers(const ScoreArgs& args, int64_t group,
                                         const std::shared_ptr<Device>& device) {
  const KvLayerView& cache = args.cache;
  SpanLists lists;
  for (int64_t head = 0; head < cache.kv_heads; ++head) {
    if (args.full_rows > 0) {
      lists.Add(LayerSpan(cache, head, 0, args.full_rows));
    } else {
      lists.Add(LayerSpan(cache, head, 0, args.sink_rows));
      lists.Add(LayerSpan(cache, head, args.chunk_begin, args.chunk_end - args.chunk_begin));
    }
    lists.Add(LayerSpan(args.repeat, head, 0, args.q.rows));
    lists.EndHead();
  }
  const uint64_t rows = uint64_t(cache.kv_heads) * args.q.rows * group;
  KVTIER_ASSIGN_OR_RETURN(DeviceMemory lse, DeviceMemory::Allocate(device, rows * sizeof(float)));
  KVTIER_RETURN_IF_ERROR(Launch({.q = args.q.data,
                                 .q_type = ElementOf(args.q.dtype),
                                 .kv_type = ElementOf(cache.dtype),
                                 .query_rows = args.q.rows,
                                 .group = group,
                                 .kv_heads = cache.kv_heads,
                                 .head_dim = cache.head_dim,
                                 .scale = args.scale,
                                 .lse = lse.as<float>()},
                                lists, device));
  return lse;
}

// The calls of FusedCalls(). UNIMPLEMENTED: one of them cannot be had; `out` is unspecified.
absl::Status RunFused(std::vector<FusedAttentionParams> calls, void* out,
                      const std::shared_ptr<Device>& device, FusedAttention& fused) {
  FusedAttentionParams& last = calls.back();
  last.out = out;
  if (calls.size() == 1) return fused.Run(last);
  FusedAttentionParams& first = calls.front();
  const int64_t heads = last.kv_heads * last.group;
  const uint64_t lse_bytes = static_cast<uint64_t>(heads * last.rows) * sizeof(float);
  const uint64_t out_bytes =
      static_cast<uint64_t>(heads * last.rows * last.head_dim) * DTypeBytes(DType::kBf16);
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory part, DeviceMemory::Allocate(device, out_bytes));
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory part_lse, DeviceMemory::Allocate(device, lse_bytes));
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory out_lse, DeviceMemory::Allocate(device, lse_bytes));
  first.out = part.as<void>();
  first.lse = part_lse.as<float>();
  last.lse = out_lse.as<float>();
  KVTIER_RETURN_IF_ERROR(fused.Run(first));
  KVTIER_RETURN_IF_ERROR(fused.Run(last));
  return device->Check(LaunchMergeAttention({.part = part.as<void>(),
                                             .part_lse = part_lse.as<float>(),
                                             .out = out,
                                             .out_lse = out_lse.as<float>(),
                                             .rows = last.rows,
                                             .heads = heads,
                                             .head_dim = last.head_dim},
                                            device->stream()),
                       "merge attention");
}

}  // namespace

absl::Status RunDeviceAttention(const AttentionArgs& args, const std::shared_ptr<Device>& device,
                                FusedAttention* fused) {
  if (fused != nullptr) {
    std::vector<FusedAttentionParams> calls = FusedCalls(args);
    if (args.odd_rows && !calls.empty()) {
      for (const AttentionArgs& call : CommonRowCalls(args)) {
        KVTIER_RETURN_IF_ERROR(RunDeviceAttention(call, device, fused));
      }
      return absl::OkStatus();
    }
    const auto takes = [fused](const FusedAttentionParams& call) { return fused->Takes(call); };
    if (!calls.empty() && std::all_of(calls.begin(), calls.end(), takes)) {
      const absl::Status done = RunFused(std::move(calls), args.out.data, device, *fused);
      if (!absl::IsUnimplemented(done)) return done;
    }
  }
  const KvLayerView& tail = args.tail;
  SpanLists lists;
  for (int64_t head = 0; head < tail.kv_heads; ++head) {
    if (args.spans != nullptr) {
      for (const RowSpan& span : (*args.spans)[head]) lists.Add(ToKeySpan(span));
    }
    lists.Add(LayerSpan(tail, head, 0, args.tail_rows));
    lists.EndHead();
  }
  return Launch({.q = args.q.data,
                 .q_type = ElementOf(args.q.dtype),
                 .kv_type = ElementOf(args.span_dtype),
                 .query_rows = args.q.rows,
                 .group = args.q.cols / (tail.kv_heads * tail.head_dim),
                 .kv_heads = tail.kv_heads,
                 .head_dim = tail.head_dim,
                 .window = args.window,
                 .scale = args.scale,
                 .out = args.out.data},
                lists, device);
}

absl::Status RunDeviceScore(const ScoreArgs& args, const std::shared_ptr<Device>& device) {
  const KvLayerView& cache = args.cache;
  const int64_t group = args.q.cols / (cache.kv_heads * cache.head_dim);
  const int64_t columns = args.chunk_end - args.chunk_begin;
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory lse, Normalisers(args, group, device));

  DeviceTables offsets;
  size_t row_offsets = 0;
  size_t key_offsets = 0;
  if (args.row_offsets != nullptr) {
    row_offsets = offsets.Add(std::vector<float>(args.row_offsets, args.row_offsets + args.q.rows));
  }
  if (args.key_offsets != nullptr) {
    std::vector<float> dense;  // [q_heads, columns]
    dense.reserve(cache.kv_heads * group * columns);
    for (int64_t head = 0; head < cache.kv_heads * group; ++head) {
      const float* from = args.key_offsets + head * args.key_offset_stride;
      dense.insert(dense.end(), from, from + columns);
    }
    key_offsets = offsets.Add(dense);
  }
  KVTIER_RETURN_IF_ERROR(offsets.Upload(device));

  const uint64_t scores = uint64_t(cache.kv_heads) * columns;
  KVTIER_ASSIGN_OR_RETURN(const DeviceMemory best,
                          DeviceMemory::Allocate(device, scores * sizeof(uint32_t)));
  KVTIER_RETURN_IF_ERROR(device->Zero(best.as<void>(), scores * sizeof(uint32_t)));
  const bool has_rows = args.row_offsets != nullptr;
  const bool has_keys = args.key_offsets != nullptr;
  ScoreMaxParams params{.q = args.q.data,
                        .q_type = ElementOf(args.q.dtype),
                        .keys = cache.keys,
                        .key_type = ElementOf(cache.dtype),
                        .capacity = cache.capacity,
                        .chunk_begin = args.chunk_begin,
                        .columns = columns,
                        .query_rows = args.q.rows,
                        .group = group,
                        .kv_heads = cache.kv_heads,
                        .head_dim = cache.head_dim,
                        .scale = args.scale,
                        .lse = lse.as<float>(),
                        .row_offsets = has_rows ? offsets.At<float>(row_offsets) : nullptr,
                        .key_offsets = has_keys ? offsets.At<float>(key_offsets) : nullptr,
                        .best = best.as<uint32_t>()};
  const bool tensor = ScoreTensorFits(params);
  // Few keys or heads leave multiprocessors idle: then the query rows are shared out, too. The
  // result does not depend on how.
  const int64_t key_tile = tensor ? kScoreTensorKeys : KeyTile(cache.head_dim);
  const int64_t query_tile = tensor ? kScoreTensorRows : kQueryTile;
  const int64_t key_tiles = (columns + key_tile - 1) / key_tile;
  const int64_t query_tiles = (args.q.rows * group + query_tile - 1) / query_tile;
  params.parts = std::clamp<int64_t>(ItemsWanted(*device) / (key_tiles * cache.kv_heads), 1,
                                     std::min<int64_t>(query_tiles, 65535));
  KVTIER_RETURN_IF_ERROR(device->Check(tensor ? LaunchScoreTensor(params, device->stream())
                                              : LaunchScoreMax(params, device->stream()),
                                       "score"));
  return device->Check(LaunchScoreValue({.best = best.as<uint32_t>(),
                                         .out = args.out,
                                         .kv_heads = cache.kv_heads,
                                         .columns = columns,
                                         .out_stride = args.out_stride,
                                         .clamp = !has_rows && !has_keys},
                                        device->stream()),
                       "score");
}

}  // namespace kvtier
