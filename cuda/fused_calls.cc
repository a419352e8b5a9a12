#include "cuda/fused_calls.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>

#include "cuda/cudnn_shape.h"

namespace kvtier {
namespace {

// Rows of all heads: equally many in each, heads equally far apart.
struct KeyRun {
  const void* keys = nullptr;
  const void* values = nullptr;
  int64_t rows = 0;
  int64_t head_rows = 0;  // From a head's first row to the next one's.
};

// Numbers, because spans may come from different allocations.
int64_t BytesBetween(const void* from, const void* to) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(to)) -
         static_cast<int64_t>(reinterpret_cast<uintptr_t>(from));
}

// The spans of all heads as one run, which has no rows if there are no spans. Nothing: they are
// none.
std::optional<KeyRun> RunOfSpans(const AttentionArgs& args, int64_t row_bytes) {
  KeyRun run;
  if (args.spans == nullptr) return run;
  const HeadSpans& heads = *args.spans;
  // Each head's only span that has rows.
  std::vector<const RowSpan*> only(heads.size(), nullptr);
  for (size_t h = 0; h < heads.size(); ++h) {
    for (const RowSpan& span : heads[h]) {
      if (span.rows == 0) continue;
      if (only[h] != nullptr || span.codec != CodecId::kRaw) return std::nullopt;
      only[h] = &span;
    }
  }
  for (const RowSpan* span : only) {
    if ((span == nullptr) != (only[0] == nullptr)) return std::nullopt;
  }
  if (only.empty() || only[0] == nullptr) return run;
  run = {.keys = only[0]->keys,
         .values = only[0]->values,
         .rows = only[0]->rows,
         .head_rows = only[0]->rows};
  if (only.size() == 1) {
    run.head_rows = std::max(run.head_rows, args.readable_span_rows);
    return run;
  }
  const int64_t apart = BytesBetween(only[0]->keys, only[1]->keys);
  if (apart % row_bytes != 0 || apart / row_bytes < run.rows) return std::nullopt;
  run.head_rows = apart / row_bytes;
  for (size_t h = 0; h < only.size(); ++h) {
    const int64_t at = apart * static_cast<int64_t>(h);
    if (only[h]->rows != run.rows || BytesBetween(run.keys, only[h]->keys) != at ||
        BytesBetween(run.values, only[h]->values) != at) {
      return std::nullopt;
    }
  }
  // Further rows would be the next head's.
  if (args.readable_span_rows > run.head_rows) return std::nullopt;
  return run;
}

// Whether the tail's rows follow those of the run in every head.
bool Follows(const KvLayerView& tail, const KeyRun& run, int64_t row_bytes) {
  return BytesBetween(run.keys, tail.keys) == run.rows * row_bytes &&
         BytesBetween(run.values, tail.values) == run.rows * row_bytes &&
         (tail.kv_heads == 1 || tail.capacity == run.head_rows);
}

}  // namespace

std::vector<AttentionArgs> CommonRowCalls(const AttentionArgs& args) {
  if (!args.odd_rows) return {args};
  std::vector<AttentionArgs> calls;
  for (int64_t begin = 0; begin < args.q.rows;) {
    const int64_t left = args.q.rows - begin;
    const auto common = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(left)));
    const int64_t rows = common < kCudnnQueryRowsMin ? left : common;
    AttentionArgs call = args;
    call.q = args.q.Rows(begin, rows);
    call.out = args.out.Rows(begin, rows);
    begin += rows;
    call.tail_rows = args.tail_rows - args.q.rows + begin;  // Its last row sees so many.
    call.odd_rows = false;
    calls.push_back(call);
  }
  return calls;
}

std::vector<FusedAttentionParams> FusedCalls(const AttentionArgs& args) {
  const KvLayerView& tail = args.tail;
  if (args.q.dtype != DType::kBf16 || args.span_dtype != DType::kBf16) return {};
  const int64_t row_bytes = tail.head_dim * DTypeBytes(DType::kBf16);
  const std::optional<KeyRun> spans = RunOfSpans(args, row_bytes);
  if (!spans.has_value()) return {};
  const int64_t all_rows = spans->rows + args.tail_rows;
  // A window that holds every row is none.
  const int64_t window = args.window >= all_rows ? 0 : args.window;

  FusedAttentionParams own{.q = args.q.data,
                           .keys = tail.keys,
                           .values = tail.values,
                           .rows = args.q.rows,
                           .key_rows = args.tail_rows,
                           .head_rows = tail.capacity,
                           .readable_rows = tail.capacity,
                           .kv_heads = tail.kv_heads,
                           .group = args.q.cols / (tail.kv_heads * tail.head_dim),
                           .head_dim = tail.head_dim,
                           .causal = true,
                           .window = window,
                           .scale = args.scale};
  if (spans->rows == 0) return {own};
  FusedAttentionParams context = own;
  context.keys = spans->keys;
  context.values = spans->values;
  context.head_rows = spans->head_rows;
  if (Follows(tail, *spans, row_bytes)) {
    context.key_rows = context.readable_rows = all_rows;
    return {context};
  }
  // The rows that a window leaves of the first run differ from query to query.
  if (window > 0) return {};
  context.key_rows = spans->rows;
  context.readable_rows = std::max(spans->rows, args.readable_span_rows);
  context.causal = false;
  return {context, own};
}

}  // namespace kvtier
