#include "compressor/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/host_backend.h"
#include "kvcache/row_codec.h"

namespace kvtier {
namespace {

struct ReferenceWeights final : LinearWeights {
  int64_t in_features() const override { return in; }
  int64_t out_features() const override { return out; }
  uint64_t bytes() const override { return values.size() * sizeof(float); }
  int64_t in = 0;
  int64_t out = 0;
  std::vector<float> values;  // [out, in]
};

float* Row(const TensorView& view, int64_t row) {
  return static_cast<float*>(view.data) + row * view.cols;
}

// One row of keys or values as floats.
std::vector<float> KvRow(const void* rows, DType dtype, int64_t row, int64_t head_dim) {
  std::vector<float> values(head_dim);
  const auto* bytes = static_cast<const std::byte*>(rows);
  LoadFloats(bytes + row * head_dim * DTypeBytes(dtype), dtype, values);
  return values;
}

// The same of a span, whatever its codec.
std::vector<float> SpanRow(const RowSpan& span, bool of_keys, DType dtype, int64_t row,
                           int64_t head_dim) {
  const std::byte* rows = of_keys ? span.keys : span.values;
  const RowCodec* codec = FindRowCodec(span.codec);
  if (codec == nullptr) return KvRow(rows, dtype, row, head_dim);
  const std::byte* scales = of_keys ? span.key_scales : span.value_scales;
  std::vector<float> values(head_dim);
  codec->DecodeRow(rows + row * codec->code_bytes(static_cast<uint32_t>(head_dim)),
                   scales + row * codec->scale_bytes(), values);
  return values;
}

void StoreKvRow(const float* from, DType dtype, int64_t count, void* rows, int64_t at) {
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == DType::kF32) static_cast<float*>(rows)[at + i] = from[i];
    if (dtype == DType::kF16) static_cast<float16*>(rows)[at + i] = float16(from[i]);
    if (dtype == DType::kBf16) static_cast<bfloat16*>(rows)[at + i] = bfloat16(from[i]);
  }
}

double Dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += double{a[i]} * b[i];
  return sum;
}

// log(sum(exp(logits)))
double LogSumExp(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

// The larger one; NaN if either is.
double MaxOrNan(double a, double b) { return std::isnan(a) || a > b ? a : b; }

using Rows = std::vector<std::vector<float>>;  // [rows][head_dim]

class ReferenceBackend final : public HostBackend {
 public:
  absl::string_view name() const override { return "reference"; }

 protected:
  absl::StatusOr<std::unique_ptr<LinearWeights>> RunPrepareLinear(const std::byte* weights,
                                                                  DType dtype, int64_t out_features,
                                                                  int64_t in_features) override {
    auto result = std::make_unique<ReferenceWeights>();
    result->in = in_features;
    result->out = out_features;
    result->values.resize(in_features * out_features);
    LoadFloats(weights, dtype, result->values);
    return std::unique_ptr<LinearWeights>(std::move(result));
  }

  absl::Status RunReadLinear(const LinearWeights& weights, std::span<float> to) override {
    const auto* w = dynamic_cast<const ReferenceWeights*>(&weights);
    if (w == nullptr) return absl::InvalidArgumentError("linear: weights of another backend");
    std::copy(w->values.begin(), w->values.end(), to.begin());
    return absl::OkStatus();
  }

  absl::Status RunEmbed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                        TensorView y) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::vector<float> row = KvRow(table.data, table.dtype, ids[i], table.cols);
      for (int64_t c = 0; c < table.cols; ++c) Row(y, i)[c] = row[c] * scale;
    }
    return absl::OkStatus();
  }

  absl::Status RunLinear(TensorView x, const LinearWeights& weights, TensorView y) override {
    const auto* w = dynamic_cast<const ReferenceWeights*>(&weights);
    if (w == nullptr) return absl::InvalidArgumentError("linear: weights of another backend");
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t o = 0; o < w->out; ++o) {
        Row(y, i)[o] = static_cast<float>(Dot(Row(x, i), &w->values[o * w->in], w->in));
      }
    }
    return absl::OkStatus();
  }

  absl::Status RunRmsNorm(TensorView x, const float* weight, float epsilon, TensorView y) override {
    for (int64_t i = 0; i < x.rows; ++i) {
      const double mean = Dot(Row(x, i), Row(x, i), x.cols) / double(x.cols);
      const double factor = 1 / std::sqrt(mean + epsilon);
      for (int64_t c = 0; c < x.cols; ++c) {
        Row(y, i)[c] = static_cast<float>(Row(x, i)[c] * factor * weight[c]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status RunAdd(TensorView x, TensorView y) override {
    for (int64_t i = 0; i < x.rows; ++i) {
      const float* from = Row(y, y.rows == 1 ? 0 : i);
      for (int64_t c = 0; c < x.cols; ++c) Row(x, i)[c] += from[c];
    }
    return absl::OkStatus();
  }

  absl::Status RunGateMul(Activation activation, TensorView gate, TensorView up,
                          TensorView y) override {
    const double root = std::sqrt(2 / std::acos(-1.0));  // Of 2 / pi.
    for (int64_t i = 0; i < gate.rows * gate.cols; ++i) {
      const double g = Row(gate, 0)[i];
      const double gated = activation == Activation::kSilu
                               ? g / (1 + std::exp(-g))
                               : g / 2 * (1 + std::tanh(root * (g + 0.044715 * g * g * g)));
      Row(y, 0)[i] = static_cast<float>(gated * Row(up, 0)[i]);
    }
    return absl::OkStatus();
  }

  // The angle is rounded to fp32 before its cosine is taken, as the model was trained.
  absl::Status RunRope(TensorView x, int64_t heads, const RopeTable& table,
                       int64_t first_position) override {
    const int64_t half = static_cast<int64_t>(table.inverse_frequencies.size());
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t d = 0; d < half; ++d) {
        const float angle = static_cast<float>(first_position + i) * table.inverse_frequencies[d];
        const double c = std::cos(double{angle}) * table.attention_scaling;
        const double s = std::sin(double{angle}) * table.attention_scaling;
        for (int64_t h = 0; h < heads; ++h) {
          float& a = Row(x, i)[h * 2 * half + d];
          float& b = Row(x, i)[h * 2 * half + half + d];
          const double a0 = a;
          const double b0 = b;
          a = static_cast<float>(a0 * c - b0 * s);
          b = static_cast<float>(b0 * c + a0 * s);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status RunAppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) override {
    const int64_t dim = layer.head_dim;
    for (int64_t i = 0; i < k.rows; ++i) {
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        const int64_t to = (h * layer.capacity + at + i) * dim;
        StoreKvRow(Row(k, i) + h * dim, layer.dtype, dim, layer.keys, to);
        StoreKvRow(Row(v, i) + h * dim, layer.dtype, dim, layer.values, to);
      }
    }
    return absl::OkStatus();
  }

  absl::Status RunAttention(const AttentionArgs& args) override {
    const KvLayerView& tail = args.tail;
    const int64_t dim = tail.head_dim;
    const int64_t group = args.q.cols / (tail.kv_heads * dim);
    for (int64_t h = 0; h < tail.kv_heads; ++h) {
      Rows keys;
      Rows values;
      if (args.spans != nullptr) {
        for (const RowSpan& span : (*args.spans)[h]) {
          for (int64_t j = 0; j < span.rows; ++j) {
            keys.push_back(SpanRow(span, /*of_keys=*/true, args.span_dtype, j, dim));
            values.push_back(SpanRow(span, /*of_keys=*/false, args.span_dtype, j, dim));
          }
        }
      }
      const int64_t span_rows = static_cast<int64_t>(keys.size());
      for (int64_t j = 0; j < args.tail_rows; ++j) {
        keys.push_back(KvRow(tail.keys, tail.dtype, h * tail.capacity + j, dim));
        values.push_back(KvRow(tail.values, tail.dtype, h * tail.capacity + j, dim));
      }
      for (int64_t i = 0; i < args.q.rows; ++i) {
        const int64_t seen = span_rows + args.tail_rows - args.q.rows + i + 1;
        const int64_t first = args.window == 0 ? 0 : std::max<int64_t>(0, seen - args.window);
        for (int64_t g = 0; g < group; ++g) {
          const int64_t column = (h * group + g) * dim;
          AttendRow(Row(args.q, i) + column, keys, values, first, seen, args.scale,
                    Row(args.out, i) + column);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status RunScoreColumnMax(const ScoreArgs& args) override {
    const KvLayerView& cache = args.cache;
    const int64_t dim = cache.head_dim;
    const int64_t group = args.q.cols / (cache.kv_heads * dim);
    const int64_t columns = args.chunk_end - args.chunk_begin;
    for (int64_t h = 0; h < cache.kv_heads; ++h) {
      Rows keys;                          // sinks, chunk, repeat; or the whole cache, repeat
      int64_t chunk_at = args.sink_rows;  // Where the chunk begins in `keys`.
      if (args.full_rows > 0) chunk_at = args.chunk_begin;
      for (int64_t j = 0; j < std::max(args.full_rows, args.chunk_end); ++j) {
        if (args.full_rows == 0 && j >= args.sink_rows && j < args.chunk_begin) continue;
        keys.push_back(KvRow(cache.keys, cache.dtype, h * cache.capacity + j, dim));
      }
      const int64_t cached = static_cast<int64_t>(keys.size());
      for (int64_t j = 0; j < args.q.rows; ++j) {
        keys.push_back(
            KvRow(args.repeat.keys, args.repeat.dtype, h * args.repeat.capacity + j, dim));
      }
      std::vector<double> best(columns, -std::numeric_limits<double>::infinity());
      for (int64_t i = 0; i < args.q.rows; ++i) {
        const int64_t seen = cached + i + 1;
        const double row_offset = args.row_offsets == nullptr ? 0 : args.row_offsets[i];
        for (int64_t g = 0; g < group; ++g) {
          const float* q = Row(args.q, i) + (h * group + g) * dim;
          const std::vector<double> logits = Logits(q, keys, seen, args.scale, dim);
          const double lse = LogSumExp(logits);
          for (int64_t j = 0; j < columns; ++j) {
            const double key_offset =
                args.key_offsets == nullptr
                    ? 0
                    : args.key_offsets[(h * group + g) * args.key_offset_stride + j];
            best[j] = MaxOrNan(best[j], logits[chunk_at + j] - lse + row_offset + key_offset);
          }
        }
      }
      const bool clamp = args.row_offsets == nullptr && args.key_offsets == nullptr;
      for (int64_t j = 0; j < columns; ++j) {
        args.out[h * args.out_stride + j] =
            clamp && best[j] > 0 ? 0.0f : static_cast<float>(best[j]);
      }
    }
    return absl::OkStatus();
  }

 private:
  static std::vector<double> Logits(const float* q, const Rows& keys, int64_t seen, float scale,
                                    int64_t dim) {
    std::vector<double> logits(seen);
    for (int64_t j = 0; j < seen; ++j) logits[j] = scale * Dot(q, keys[j].data(), dim);
    return logits;
  }

  // Over rows [first, seen).
  static void AttendRow(const float* q, const Rows& keys, const Rows& values, int64_t first,
                        int64_t seen, float scale, float* out) {
    const int64_t dim = static_cast<int64_t>(keys[0].size());
    std::vector<double> logits = Logits(q, keys, seen, scale, dim);
    std::fill_n(logits.begin(), first, -std::numeric_limits<double>::infinity());
    const double lse = LogSumExp(logits);
    std::vector<double> sum(dim, 0.0);
    for (int64_t j = first; j < seen; ++j) {
      const double weight = std::exp(logits[j] - lse);
      for (int64_t d = 0; d < dim; ++d) sum[d] += weight * values[j][d];
    }
    for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<float>(sum[d]);
  }
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace kvtier
