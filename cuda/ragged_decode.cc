// The C interface of ragged attention (cuda/kvtier_ragged_decode.h) over the kernels of
// cuda/attention.h. Of the standard library and the kernels only: it makes a library of its own.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "cuda/attention.h"
#include "cuda/attention_tensor.h"
#include "cuda/kvtier_ragged_decode.h"

namespace kvtier {
namespace {

constexpr uint32_t kPlanMagic = 0x6B76'7264;  // "kvrd"
constexpr uint64_t kAlignment = 16;
// Blocks that a multiprocessor runs at once, and some in waiting.
constexpr int64_t kItemsPerMultiprocessor = 6;
// Far above what any device holds; far below what overflows.
constexpr int64_t kRowsMax = int64_t{1} << 32;
constexpr int64_t kHeadsMax = 4096;
constexpr int64_t kQueryRowsMax = int64_t{1} << 24;

// The start of a plan. The arrays behind it are what the kernels read.
struct PlanHeader {
  uint32_t magic;
  uint32_t version;
  uint64_t bytes;
  uint64_t workspace_bytes;
  uint64_t spans;  // Offsets from the start of the plan.
  uint64_t span_begin;
  uint64_t head_rows;
  uint64_t items;
  uint64_t merges;
  int64_t item_count;
  int64_t merge_count;
  int64_t slots;
  int64_t query_rows;
  int64_t group;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t window;
  float scale;
  uint32_t query_tile;
  Element q_type;
  Element kv_type;
  bool tensor;
};

bool IsAligned(const void* pointer, uint64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

constexpr uint64_t AlignUp(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

template <typename T>
int CheckVersion(const T* value) {
  if (value == nullptr) return KVTIER_RAGGED_BAD_ARGUMENT;
  return value->struct_bytes == sizeof(T) && value->version == KVTIER_RAGGED_VERSION
             ? KVTIER_RAGGED_OK
             : KVTIER_RAGGED_BAD_VERSION;
}

bool IsDtype(int32_t dtype) { return dtype >= KVTIER_RAGGED_F32 && dtype <= KVTIER_RAGGED_BF16; }

bool IsBetween(int64_t value, int64_t least, int64_t most) {
  return value >= least && value <= most;
}

int CheckShape(const kvtier_ragged_shape& s) {
  const bool fits =
      IsDtype(s.q_dtype) && IsDtype(s.kv_dtype) && IsBetween(s.query_rows, 1, kQueryRowsMax) &&
      IsBetween(s.group, 1, kHeadsMax) && IsBetween(s.kv_heads, 1, kHeadsMax) &&
      IsBetween(s.head_dim, 1, kAttentionHeadDimMax) && IsBetween(s.window, 0, kRowsMax) &&
      IsBetween(s.multiprocessors, 1, 1 << 16) && s.spans != nullptr && s.span_begin != nullptr;
  return fits ? KVTIER_RAGGED_OK : KVTIER_RAGGED_BAD_ARGUMENT;
}

int CheckSpan(const kvtier_ragged_shape& shape, const kvtier_ragged_span& span) {
  if (!IsBetween(span.rows, 0, kRowsMax) || span.reserved != 0 ||
      !IsBetween(span.codec, KVTIER_RAGGED_RAW, KVTIER_RAGGED_INT4)) {
    return KVTIER_RAGGED_BAD_ARGUMENT;
  }
  if (span.rows == 0) return KVTIER_RAGGED_OK;
  const bool raw = span.codec == KVTIER_RAGGED_RAW;
  if (span.keys == nullptr || span.values == nullptr ||
      (!raw && (span.key_scales == nullptr || span.value_scales == nullptr))) {
    return KVTIER_RAGGED_BAD_ARGUMENT;
  }
  const uint64_t element = raw ? ElementBytes(static_cast<Element>(shape.kv_dtype)) : 1;
  const bool aligned = IsAligned(span.keys, element) && IsAligned(span.values, element) &&
                       (raw || (IsAligned(span.key_scales, 2) && IsAligned(span.value_scales, 2)));
  return aligned ? KVTIER_RAGGED_OK : KVTIER_RAGGED_MISALIGNED;
}

struct Spans {
  std::vector<KeySpan> spans;
  std::vector<int64_t> begin = {0};
  std::vector<int64_t> rows;
};

int ReadSpans(const kvtier_ragged_shape& shape, Spans& to) {
  if (shape.span_begin[0] != 0) return KVTIER_RAGGED_BAD_ARGUMENT;
  for (int64_t head = 0; head < shape.kv_heads; ++head) {
    if (shape.span_begin[head + 1] < shape.span_begin[head]) return KVTIER_RAGGED_BAD_ARGUMENT;
    int64_t rows = 0;
    for (int64_t i = shape.span_begin[head]; i < shape.span_begin[head + 1]; ++i) {
      const kvtier_ragged_span& span = shape.spans[i];
      if (const int code = CheckSpan(shape, span); code != KVTIER_RAGGED_OK) return code;
      if (span.rows == 0) continue;
      to.spans.push_back({.keys = span.keys,
                          .values = span.values,
                          .key_scales = span.key_scales,
                          .value_scales = span.value_scales,
                          .begin = rows,
                          .rows = span.rows,
                          .code = static_cast<RowCode>(span.codec)});
      rows += span.rows;
      if (rows > kRowsMax) return KVTIER_RAGGED_BAD_ARGUMENT;
    }
    if (rows < shape.query_rows) return KVTIER_RAGGED_BAD_ARGUMENT;
    to.begin.push_back(static_cast<int64_t>(to.spans.size()));
    to.rows.push_back(rows);
  }
  return KVTIER_RAGGED_OK;
}

// The parameters that follow from the plan; without pointers.
AttentionParams ParamsOf(const PlanHeader& h) {
  AttentionParams params;
  params.q_type = h.q_type;
  params.kv_type = h.kv_type;
  params.item_count = h.item_count;
  params.merge_count = h.merge_count;
  params.query_rows = h.query_rows;
  params.group = h.group;
  params.kv_heads = h.kv_heads;
  params.head_dim = h.head_dim;
  params.window = h.window;
  params.scale = h.scale;
  return params;
}

uint64_t PartBytes(const PlanHeader& h) {
  return static_cast<uint64_t>(h.slots) * h.query_tile * static_cast<uint64_t>(h.head_dim) *
         sizeof(float);
}

// Reserves room for an array behind what is there; returns its offset.
template <typename T>
uint64_t Reserve(const std::vector<T>& array, uint64_t& bytes) {
  const uint64_t at = AlignUp(bytes);
  bytes = at + array.size() * sizeof(T);
  return at;
}

template <typename T>
void Write(const std::vector<T>& array, void* plan, uint64_t at) {
  if (!array.empty()) {
    std::memcpy(static_cast<std::byte*>(plan) + at, array.data(), array.size() * sizeof(T));
  }
}

template <typename T>
const T* At(const void* plan, uint64_t at) {
  return reinterpret_cast<const T*>(static_cast<const std::byte*>(plan) + at);
}

int MakePlan(const kvtier_ragged_shape& shape, void* plan, uint64_t capacity,
             kvtier_ragged_sizes& sizes) {
  if (const int code = CheckShape(shape); code != KVTIER_RAGGED_OK) return code;
  if (!IsAligned(plan, kAlignment)) return KVTIER_RAGGED_MISALIGNED;
  Spans spans;
  if (const int code = ReadSpans(shape, spans); code != KVTIER_RAGGED_OK) return code;

  PlanHeader header;
  std::memset(static_cast<void*>(&header), 0, sizeof(header));  // Padding, too: plans are compared.
  header.magic = kPlanMagic;
  header.version = KVTIER_RAGGED_VERSION;
  header.query_rows = shape.query_rows;
  header.group = shape.group;
  header.kv_heads = shape.kv_heads;
  header.head_dim = shape.head_dim;
  header.window = shape.window;
  header.scale = shape.scale;
  header.q_type = static_cast<Element>(shape.q_dtype);
  header.kv_type = static_cast<Element>(shape.kv_dtype);
  header.tensor = AttentionTensorFits(ParamsOf(header)) &&
                  std::all_of(spans.spans.begin(), spans.spans.end(), TensorSpanFits);
  header.query_tile =
      static_cast<uint32_t>(header.tensor ? TensorQueryTile(ParamsOf(header)) : kQueryTile);
  const AttentionPlan work =
      PlanAttention({.query_rows = shape.query_rows,
                     .group = shape.group,
                     .head_rows = spans.rows,
                     .window = shape.window,
                     .items_wanted = kItemsPerMultiprocessor * shape.multiprocessors,
                     .query_tile = header.query_tile});
  header.item_count = static_cast<int64_t>(work.items.size());
  header.merge_count = static_cast<int64_t>(work.merges.size());
  header.slots = work.slots;
  uint64_t bytes = sizeof(header);
  header.spans = Reserve(spans.spans, bytes);
  header.span_begin = Reserve(spans.begin, bytes);
  header.head_rows = Reserve(spans.rows, bytes);
  header.items = Reserve(work.items, bytes);
  header.merges = Reserve(work.merges, bytes);
  header.bytes = AlignUp(bytes);
  header.workspace_bytes = AlignUp(PartBytes(header)) +
                           static_cast<uint64_t>(header.slots) * header.query_tile * sizeof(float);
  if (plan != nullptr && capacity < header.bytes) return KVTIER_RAGGED_TOO_SMALL;
  sizes.plan_bytes = header.bytes;
  sizes.workspace_bytes = header.workspace_bytes;
  if (plan == nullptr) return KVTIER_RAGGED_OK;
  std::memset(plan, 0, header.bytes);
  std::memcpy(plan, &header, sizeof(header));
  Write(spans.spans, plan, header.spans);
  Write(spans.begin, plan, header.span_begin);
  Write(spans.rows, plan, header.head_rows);
  Write(work.items, plan, header.items);
  Write(work.merges, plan, header.merges);
  return KVTIER_RAGGED_OK;
}

}  // namespace
}  // namespace kvtier

extern "C" uint32_t kvtier_ragged_version(void) { return KVTIER_RAGGED_VERSION; }

extern "C" const char* kvtier_ragged_error(int code) {
  switch (code) {
    case KVTIER_RAGGED_OK:
      return "ok";
    case KVTIER_RAGGED_BAD_VERSION:
      return "a structure of another version or size";
    case KVTIER_RAGGED_BAD_ARGUMENT:
      return "a null, negative or unknown value, or sizes that do not fit";
    case KVTIER_RAGGED_TOO_SMALL:
      return "too little memory given for plan or workspace";
    case KVTIER_RAGGED_MISALIGNED:
      return "a pointer is not aligned";
    case KVTIER_RAGGED_NO_MEMORY:
      return "the host has no memory for the plan";
    default:
      return code > 0 ? "CUDA error" : "unknown code";
  }
}

extern "C" int kvtier_ragged_plan(const kvtier_ragged_shape* shape, void* plan,
                                  uint64_t plan_capacity, kvtier_ragged_sizes* sizes) {
  if (const int code = kvtier::CheckVersion(shape); code != KVTIER_RAGGED_OK) return code;
  if (const int code = kvtier::CheckVersion(sizes); code != KVTIER_RAGGED_OK) return code;
  try {
    return kvtier::MakePlan(*shape, plan, plan_capacity, *sizes);
  } catch (const std::bad_alloc&) {
    return KVTIER_RAGGED_NO_MEMORY;
  }
}

extern "C" int kvtier_ragged_decode(const void* plan, const void* device_plan,
                                    const kvtier_ragged_io* io) {
  using kvtier::At;
  if (const int code = kvtier::CheckVersion(io); code != KVTIER_RAGGED_OK) return code;
  if (plan == nullptr || device_plan == nullptr || io->q == nullptr || io->out == nullptr) {
    return KVTIER_RAGGED_BAD_ARGUMENT;
  }
  if (!kvtier::IsAligned(plan, kvtier::kAlignment) ||
      !kvtier::IsAligned(device_plan, kvtier::kAlignment) ||
      !kvtier::IsAligned(io->workspace, kvtier::kAlignment) || !kvtier::IsAligned(io->q, 4) ||
      !kvtier::IsAligned(io->out, 4)) {
    return KVTIER_RAGGED_MISALIGNED;
  }
  const kvtier::PlanHeader& header = *At<kvtier::PlanHeader>(plan, 0);
  if (header.magic != kvtier::kPlanMagic || header.version != KVTIER_RAGGED_VERSION) {
    return KVTIER_RAGGED_BAD_VERSION;
  }
  if (header.workspace_bytes > 0 &&
      (io->workspace == nullptr || io->workspace_bytes < header.workspace_bytes)) {
    return KVTIER_RAGGED_TOO_SMALL;
  }
  kvtier::AttentionParams params = kvtier::ParamsOf(header);
  params.q = io->q;
  params.out = io->out;
  params.spans = At<kvtier::KeySpan>(device_plan, header.spans);
  params.span_begin = At<int64_t>(device_plan, header.span_begin);
  params.head_rows = At<int64_t>(device_plan, header.head_rows);
  params.items = At<kvtier::AttentionItem>(device_plan, header.items);
  params.merges = At<kvtier::AttentionMerge>(device_plan, header.merges);
  params.part_out = static_cast<float*>(io->workspace);
  params.part_lse = reinterpret_cast<float*>(static_cast<std::byte*>(io->workspace) +
                                             kvtier::AlignUp(kvtier::PartBytes(header)));
  return header.tensor ? kvtier::LaunchAttentionTensor(params, io->stream)
                       : kvtier::LaunchAttention(params, io->stream);
}
