#include "compressor/checked_backend.h"

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// No tensor of ours is larger; keeps every product of sizes inside 64 bits.
constexpr int64_t kTensorElementsMax = int64_t{1} << 42;

absl::Status Bad(absl::string_view operation, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(operation, ": ", what));
}

absl::Status CheckView(absl::string_view operation, absl::string_view name, const TensorView& view,
                       DType dtype) {
  if (view.dtype != dtype) {
    return Bad(operation, absl::StrCat(name, " has dtype ", DTypeName(view.dtype), ", not ",
                                       DTypeName(dtype)));
  }
  if (view.rows < 0 || view.cols <= 0 || (view.data == nullptr && view.rows > 0)) {
    return Bad(operation, absl::StrCat(name, " has the shape [", view.rows, ", ", view.cols, "]"));
  }
  return absl::OkStatus();
}

absl::Status CheckShape(absl::string_view operation, absl::string_view name, const TensorView& view,
                        DType dtype, int64_t rows, int64_t cols) {
  KVTIER_RETURN_IF_ERROR(CheckView(operation, name, view, dtype));
  if (view.rows == rows && view.cols == cols) return absl::OkStatus();
  return Bad(operation, absl::StrCat(name, " has the shape [", view.rows, ", ", view.cols,
                                     "], not [", rows, ", ", cols, "]"));
}

absl::Status CheckLayer(absl::string_view operation, absl::string_view name,
                        const KvLayerView& layer, bool needs_values) {
  const bool shape = layer.kv_heads > 0 && layer.kv_heads <= limits::kKvHeadsMax &&
                     layer.head_dim > 0 && layer.head_dim <= limits::kHeadDimMax &&
                     layer.capacity >= 0;
  const bool memory =
      layer.capacity == 0 || (layer.keys != nullptr && (layer.values != nullptr || !needs_values));
  if (shape && memory) return absl::OkStatus();
  return Bad(operation, absl::StrCat(name, " has the shape [", layer.kv_heads, ", ", layer.capacity,
                                     ", ", layer.head_dim, "]", memory ? "" : " and no memory"));
}

// `q` holds a whole number of query heads per KV head of `layer`.
absl::Status CheckQueries(absl::string_view operation, const TensorView& q, DType dtype,
                          const KvLayerView& layer) {
  KVTIER_RETURN_IF_ERROR(CheckView(operation, "q", q, dtype));
  if (q.cols % (layer.kv_heads * layer.head_dim) == 0) return absl::OkStatus();
  return Bad(operation, absl::StrCat("q has ", q.cols, " columns, no multiple of ", layer.kv_heads,
                                     " heads of ", layer.head_dim));
}

// Rows of a lossy codec come with their scales.
absl::Status CheckSpans(const HeadSpans& spans) {
  for (const std::span<const RowSpan>& head : spans) {
    for (const RowSpan& span : head) {
      if (!IsKnownCodec(span.codec)) {
        return Bad("attention", absl::StrCat("unknown codec ", static_cast<int>(span.codec)));
      }
      if (span.codec == CodecId::kRaw || span.rows == 0) continue;
      if (span.key_scales == nullptr || span.value_scales == nullptr) {
        return Bad("attention", absl::StrCat(CodecName(span.codec), " rows without scales"));
      }
    }
  }
  return absl::OkStatus();
}

// One span a head at most, within the rows that may be read.
absl::Status CheckReadableSpans(const AttentionArgs& args) {
  for (size_t head = 0; args.spans != nullptr && head < args.spans->size(); ++head) {
    int64_t rows = 0;
    int64_t spans = 0;
    for (const RowSpan& span : (*args.spans)[head]) {
      rows += span.rows;
      ++spans;
    }
    if (spans <= 1 && rows <= args.readable_span_rows) continue;
    return Bad("attention", absl::StrCat(args.readable_span_rows, " readable rows for ", spans,
                                         " spans of ", rows, " rows in head ", head));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Tensor> CheckedBackend::Allocate(DType dtype, int64_t rows, int64_t cols) {
  if (rows < 0 || cols < 0 || (rows > 0 && cols > kTensorElementsMax / rows)) {
    return Bad("allocate", absl::StrCat("shape [", rows, ", ", cols, "]"));
  }
  return RunAllocate(dtype, rows, cols);
}

absl::Status CheckedBackend::Upload(std::span<const std::byte> host, TensorView to) {
  const uint64_t bytes = uint64_t(to.rows) * uint64_t(to.cols) * DTypeBytes(to.dtype);
  if (host.size() != bytes) {
    return Bad("upload", absl::StrCat(host.size(), " bytes into a tensor of ", bytes));
  }
  return bytes == 0 ? absl::OkStatus() : RunUpload(host, to.data);
}

absl::Status CheckedBackend::Download(TensorView from, std::span<std::byte> host) {
  const uint64_t bytes = uint64_t(from.rows) * uint64_t(from.cols) * DTypeBytes(from.dtype);
  if (host.size() != bytes) {
    return Bad("download", absl::StrCat("a tensor of ", bytes, " bytes into ", host.size()));
  }
  return bytes == 0 ? absl::OkStatus() : RunDownload(from.data, host);
}

absl::StatusOr<std::unique_ptr<LinearWeights>> CheckedBackend::PrepareLinear(
    std::span<const std::byte> weights, DType dtype, int64_t out_features, int64_t in_features) {
  if (out_features <= 0 || in_features <= 0 || in_features > kTensorElementsMax / out_features ||
      weights.size() != uint64_t(out_features) * uint64_t(in_features) * DTypeBytes(dtype)) {
    return Bad("linear weights", absl::StrCat(weights.size(), " bytes for [", out_features, ", ",
                                              in_features, "] of ", DTypeName(dtype)));
  }
  return RunPrepareLinear(weights.data(), dtype, out_features, in_features);
}

absl::StatusOr<std::unique_ptr<LinearWeights>> CheckedBackend::ShareLinear(
    const TensorView& table) {
  KVTIER_RETURN_IF_ERROR(CheckView("linear weights", "table", table, table.dtype));
  if (table.rows == 0) return Bad("linear weights", "the table has no rows");
  return RunShareLinear(table);
}

absl::Status CheckedBackend::ReadLinear(const LinearWeights& weights, std::span<float> to) {
  if (to.size() != uint64_t(weights.out_features()) * uint64_t(weights.in_features())) {
    return Bad("linear weights",
               absl::StrCat("room for ", to.size(), " values, not [", weights.out_features(), ", ",
                            weights.in_features(), "]"));
  }
  return RunReadLinear(weights, to);
}

absl::Status CheckedBackend::Embed(std::span<const uint32_t> ids, const TensorView& table,
                                   float scale, TensorView y) {
  KVTIER_RETURN_IF_ERROR(CheckView("embed", "table", table, table.dtype));
  KVTIER_RETURN_IF_ERROR(CheckShape("embed", "y", y, activation_dtype(),
                                    static_cast<int64_t>(ids.size()), table.cols));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < table.rows) continue;
    return Bad("embed", absl::StrCat("id ", ids[i], " at index ", i, ", vocabulary ", table.rows));
  }
  return ids.empty() ? absl::OkStatus() : RunEmbed(ids, table, scale, y);
}

absl::Status CheckedBackend::Linear(TensorView x, const LinearWeights& weights, TensorView y) {
  KVTIER_RETURN_IF_ERROR(
      CheckShape("linear", "x", x, activation_dtype(), x.rows, weights.in_features()));
  KVTIER_RETURN_IF_ERROR(
      CheckShape("linear", "y", y, activation_dtype(), x.rows, weights.out_features()));
  return x.rows == 0 ? absl::OkStatus() : RunLinear(x, weights, y);
}

absl::Status CheckedBackend::RmsNorm(TensorView x, TensorView weight, float epsilon, TensorView y) {
  KVTIER_RETURN_IF_ERROR(CheckView("rms norm", "x", x, activation_dtype()));
  KVTIER_RETURN_IF_ERROR(CheckShape("rms norm", "weight", weight, DType::kF32, 1, x.cols));
  KVTIER_RETURN_IF_ERROR(CheckShape("rms norm", "y", y, activation_dtype(), x.rows, x.cols));
  if (x.rows == 0) return absl::OkStatus();
  return RunRmsNorm(x, static_cast<const float*>(weight.data), epsilon, y);
}

absl::Status CheckedBackend::AddInPlace(TensorView x, TensorView y) {
  KVTIER_RETURN_IF_ERROR(CheckView("add", "x", x, activation_dtype()));
  KVTIER_RETURN_IF_ERROR(
      CheckShape("add", "y", y, activation_dtype(), y.rows == 1 ? 1 : x.rows, x.cols));
  return x.rows == 0 ? absl::OkStatus() : RunAdd(x, y);
}

absl::Status CheckedBackend::GateMul(Activation activation, TensorView gate, TensorView up,
                                     TensorView y) {
  KVTIER_RETURN_IF_ERROR(CheckView("gate", "gate", gate, activation_dtype()));
  KVTIER_RETURN_IF_ERROR(CheckShape("gate", "up", up, activation_dtype(), gate.rows, gate.cols));
  KVTIER_RETURN_IF_ERROR(CheckShape("gate", "y", y, activation_dtype(), gate.rows, gate.cols));
  return gate.rows == 0 ? absl::OkStatus() : RunGateMul(activation, gate, up, y);
}

absl::Status CheckedBackend::Rope(TensorView x, int64_t heads, const RopeTable& table,
                                  int64_t first_position) {
  const int64_t pairs = static_cast<int64_t>(table.inverse_frequencies.size());
  if (heads <= 0 || pairs <= 0 || 2 * pairs > limits::kHeadDimMax || first_position < 0) {
    return Bad("rope", absl::StrCat(heads, " heads, ", pairs, " frequencies, first position ",
                                    first_position));
  }
  KVTIER_RETURN_IF_ERROR(CheckShape("rope", "x", x, activation_dtype(), x.rows, heads * 2 * pairs));
  return x.rows == 0 ? absl::OkStatus() : RunRope(x, heads, table, first_position);
}

absl::Status CheckedBackend::AppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) {
  KVTIER_RETURN_IF_ERROR(CheckLayer("append", "layer", layer, /*needs_values=*/true));
  const int64_t cols = layer.kv_heads * layer.head_dim;
  KVTIER_RETURN_IF_ERROR(CheckShape("append", "k", k, activation_dtype(), k.rows, cols));
  KVTIER_RETURN_IF_ERROR(CheckShape("append", "v", v, activation_dtype(), k.rows, cols));
  if (at < 0 || at > layer.capacity || k.rows > layer.capacity - at) {
    return Bad("append", absl::StrCat("rows [", at, ", ", at + k.rows, ") of a capacity of ",
                                      layer.capacity));
  }
  return k.rows == 0 ? absl::OkStatus() : RunAppendKv(k, v, layer, at);
}

absl::Status CheckedBackend::Attention(const AttentionArgs& args) {
  KVTIER_RETURN_IF_ERROR(CheckLayer("attention", "tail", args.tail, /*needs_values=*/true));
  KVTIER_RETURN_IF_ERROR(CheckQueries("attention", args.q, activation_dtype(), args.tail));
  KVTIER_RETURN_IF_ERROR(
      CheckShape("attention", "out", args.out, activation_dtype(), args.q.rows, args.q.cols));
  if (args.tail.dtype != args.span_dtype) {
    return Bad("attention", "the tail's dtype is not that of the spans");
  }
  if (args.tail_rows < args.q.rows || args.tail_rows > args.tail.capacity) {
    return Bad("attention", absl::StrCat("tail_rows ", args.tail_rows, " for ", args.q.rows,
                                         " queries and a capacity of ", args.tail.capacity));
  }
  if (args.spans != nullptr && static_cast<int64_t>(args.spans->size()) != args.tail.kv_heads) {
    return Bad("attention", absl::StrCat("spans of ", args.spans->size(), " heads, tail of ",
                                         args.tail.kv_heads));
  }
  if (args.spans != nullptr) KVTIER_RETURN_IF_ERROR(CheckSpans(*args.spans));
  if (args.window < 0) return Bad("attention", absl::StrCat("a window of ", args.window));
  if (args.readable_span_rows != 0) KVTIER_RETURN_IF_ERROR(CheckReadableSpans(args));
  return args.q.rows == 0 ? absl::OkStatus() : RunAttention(args);
}

absl::Status CheckedBackend::ScoreColumnMax(const ScoreArgs& args) {
  KVTIER_RETURN_IF_ERROR(CheckLayer("score", "cache", args.cache, /*needs_values=*/false));
  KVTIER_RETURN_IF_ERROR(CheckLayer("score", "repeat", args.repeat, /*needs_values=*/false));
  KVTIER_RETURN_IF_ERROR(CheckQueries("score", args.q, activation_dtype(), args.cache));
  if (args.repeat.kv_heads != args.cache.kv_heads || args.repeat.head_dim != args.cache.head_dim ||
      args.repeat.dtype != args.cache.dtype) {
    return Bad("score", "cache and repeat differ in heads, head_dim or dtype");
  }
  if (args.q.rows < 1 || args.q.rows > args.repeat.capacity) {
    return Bad("score", absl::StrCat(args.q.rows, " queries, ", args.repeat.capacity, " own keys"));
  }
  if (args.sink_rows < 0 || args.chunk_begin < args.sink_rows ||
      args.chunk_end < args.chunk_begin || args.chunk_end > args.cache.capacity) {
    return Bad("score", absl::StrCat("sinks [0, ", args.sink_rows, "), chunk [", args.chunk_begin,
                                     ", ", args.chunk_end, ") of ", args.cache.capacity, " rows"));
  }
  const int64_t columns = args.chunk_end - args.chunk_begin;
  if (columns == 0) return absl::OkStatus();
  if (args.out == nullptr || args.out_stride < columns) {
    return Bad("score", absl::StrCat("out_stride ", args.out_stride, " for ", columns, " columns"));
  }
  if (args.full_rows != 0 &&
      (args.full_rows < args.chunk_end || args.full_rows > args.cache.capacity)) {
    return Bad("score", absl::StrCat("full_rows ", args.full_rows, " for a chunk that ends at ",
                                     args.chunk_end, " of ", args.cache.capacity, " rows"));
  }
  if (args.key_offsets != nullptr && args.key_offset_stride < columns) {
    return Bad("score", absl::StrCat("key_offset_stride ", args.key_offset_stride, " for ", columns,
                                     " columns"));
  }
  return RunScoreColumnMax(args);
}

absl::Status CheckedBackend::GatherRows(const KvLayerView& layer, int64_t head,
                                        std::span<const uint32_t> positions, std::byte* keys_out,
                                        std::byte* values_out) {
  KVTIER_RETURN_IF_ERROR(CheckLayer("gather", "layer", layer, /*needs_values=*/true));
  if (head < 0 || head >= layer.kv_heads) return Bad("gather", absl::StrCat("head ", head));
  for (size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] >= layer.capacity) {
      return Bad("gather", absl::StrCat("position ", positions[i], " of ", layer.capacity));
    }
  }
  if (positions.empty()) return absl::OkStatus();
  return RunGatherRows(layer, head, positions, keys_out, values_out);
}

}  // namespace kvtier
