#include "compressor/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/cpu_kernels.h"
#include "compressor/host_backend.h"
#include "compressor/onednn_linear.h"
#include "compressor/scratch_pool.h"
#include "compressor/thread_pool.h"

namespace kvtier {
namespace {

// Query rows and keys of one attention tile: its logits (16 KiB) and its keys and values (64 KiB at
// head_dim 128) stay in a core's second-level cache.
constexpr int64_t kTileQueries = 64;
constexpr int64_t kTileKeys = 64;
// A few queries over many keys (decoding) are cut into parts of this many keys, merged in order.
// The cut depends on the shapes alone, so that the number of threads does not change results.
constexpr int64_t kSplitKeys = 2048;
constexpr int64_t kSplitQueriesMax = 16;
// Elements of an elementwise operation per task.
constexpr int64_t kElementsPerTask = 1 << 15;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

KvElement ElementOf(DType dtype) {
  return dtype == DType::kF32 ? KvElement::kF32
                              : (dtype == DType::kF16 ? KvElement::kF16 : KvElement::kBf16);
}

int64_t PadUp(int64_t count) { return (count + kKernelPad - 1) / kKernelPad * kKernelPad; }
int64_t DivideUp(int64_t count, int64_t by) { return (count + by - 1) / by; }

float* Row(const TensorView& view, int64_t row) {
  return static_cast<float*>(view.data) + row * view.cols;
}

constexpr int64_t kSeenByAll = int64_t{1} << 40;

// Some keys (and values) that lie together, of one KV head. Query i (counted in rows of the pass)
// sees its rows from `hidden_to_first + i` on (a window; from the first one on where that is not
// positive) up to the first `seen_by_first + i`, all of them at most.
struct KeyPiece {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;  // Null: only keys are of interest.
  int64_t rows = 0;
  int64_t seen_by_first = 0;
  int64_t hidden_to_first = -kSeenByAll;
};

KeyPiece PieceOf(const KvLayerView& layer, int64_t head, int64_t begin, int64_t end,
                 int64_t seen_by_first) {
  const int64_t at = (head * layer.capacity + begin) * layer.head_dim * DTypeBytes(layer.dtype);
  return {.keys = static_cast<const std::byte*>(layer.keys) + at,
          .values =
              layer.values == nullptr ? nullptr : static_cast<const std::byte*>(layer.values) + at,
          .rows = end - begin,
          .seen_by_first = seen_by_first};
}

// What one task keeps of its query rows, in one borrowed buffer.
struct Tile {
  // `queries` rows; `padded` is head_dim padded, or 0 where no output is wanted.
  static int64_t Floats(int64_t queries, int64_t dim, int64_t padded) {
    return queries * (dim + kTileKeys + padded + 2) + kTileKeys * (dim + padded);
  }
  Tile(float* memory, int64_t queries, int64_t dim, int64_t padded)
      : logits(memory),
        keys(logits + queries * kTileKeys),
        values(keys + dim * kTileKeys),
        out(values + kTileKeys * padded),
        q(out + queries * padded),
        maximum(q + queries * dim),
        sum(maximum + queries) {}
  float* logits;   // [queries, kTileKeys]
  float* keys;     // [dim, kTileKeys], transposed
  float* values;   // [kTileKeys, padded]
  float* out;      // [queries, padded]
  float* q;        // [queries, dim], scaled
  float* maximum;  // [queries]
  float* sum;      // [queries]
};

class CpuBackend final : public HostBackend {
 public:
  CpuBackend(int threads, const CpuKernels& kernels, bool bf16_products)
      : pool_(threads), kernels_(kernels), bf16_products_(bf16_products) {}

  absl::string_view name() const override { return "cpu"; }

 protected:
  absl::StatusOr<std::unique_ptr<LinearWeights>> RunPrepareLinear(const std::byte* weights,
                                                                  DType dtype, int64_t out_features,
                                                                  int64_t in_features) override {
    const DType compute = bf16_products_ && dtype == DType::kBf16 ? DType::kBf16 : DType::kF32;
    return PackOnednnLinear(weights, dtype, compute, out_features, in_features, pool_, scratch_);
  }

  absl::Status RunLinear(TensorView x, const LinearWeights& weights, TensorView y) override {
    KVTIER_ASSIGN_OR_RETURN(const DType input, OnednnInputDtype(weights));
    if (input == DType::kF32) return RunOnednnLinear(x, weights, y);
    ScratchPool::Lease rounded = scratch_.Borrow(DivideUp(x.rows * x.cols, 2));
    if (rounded.data() == nullptr) {
      return absl::ResourceExhaustedError("linear: no memory for scratch");
    }
    auto* const to = reinterpret_cast<uint16_t*>(rounded.data());
    ForRows(x.rows, x.cols,
            [&](int64_t row) { kernels_.to_bf16(Row(x, row), x.cols, to + row * x.cols); });
    TensorView from = x;
    from.data = to;
    from.dtype = DType::kBf16;
    return RunOnednnLinear(from, weights, y);
  }

  absl::Status RunEmbed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                        TensorView y) override {
    const auto* rows = static_cast<const std::byte*>(table.data);
    for (size_t i = 0; i < ids.size(); ++i) {
      kernels_.load(rows + int64_t{ids[i]} * table.cols * DTypeBytes(table.dtype),
                    ElementOf(table.dtype), table.cols, Row(y, static_cast<int64_t>(i)));
      if (scale == 1) continue;
      float* row = Row(y, static_cast<int64_t>(i));
      for (int64_t c = 0; c < table.cols; ++c) row[c] *= scale;
    }
    return absl::OkStatus();
  }

  absl::Status RunRmsNorm(TensorView x, const float* weight, float epsilon, TensorView y) override {
    ForRows(x.rows, x.cols, [&](int64_t row) {
      kernels_.rms_norm(Row(x, row), weight, x.cols, epsilon, Row(y, row));
    });
    return absl::OkStatus();
  }

  absl::Status RunAdd(TensorView x, TensorView y) override {
    ForRows(x.rows, x.cols, [&](int64_t row) {
      float* to = Row(x, row);
      const float* from = Row(y, y.rows == 1 ? 0 : row);
      for (int64_t i = 0; i < x.cols; ++i) to[i] += from[i];
    });
    return absl::OkStatus();
  }

  absl::Status RunGateMul(Activation activation, TensorView gate, TensorView up,
                          TensorView y) override {
    const auto kernel =
        activation == Activation::kSilu ? kernels_.silu_mul : kernels_.gelu_tanh_mul;
    ForRows(gate.rows, gate.cols,
            [&](int64_t row) { kernel(Row(gate, row), Row(up, row), gate.cols, Row(y, row)); });
    return absl::OkStatus();
  }

  // Angles, sines and cosines in fp32, as the model was trained.
  absl::Status RunRope(TensorView x, int64_t heads, const RopeTable& table,
                       int64_t first_position) override {
    const int64_t half = static_cast<int64_t>(table.inverse_frequencies.size());
    ForRows(x.rows, 8 * x.cols, [&](int64_t row) {
      float cosines[limits::kHeadDimMax / 2];
      float sines[limits::kHeadDimMax / 2];
      for (int64_t d = 0; d < half; ++d) {
        const float angle = static_cast<float>(first_position + row) * table.inverse_frequencies[d];
        cosines[d] = std::cos(angle) * table.attention_scaling;
        sines[d] = std::sin(angle) * table.attention_scaling;
      }
      for (int64_t h = 0; h < heads; ++h) {
        float* a = Row(x, row) + h * 2 * half;
        float* b = a + half;
        for (int64_t d = 0; d < half; ++d) {
          const float turned = a[d] * cosines[d] - b[d] * sines[d];
          b[d] = b[d] * cosines[d] + a[d] * sines[d];
          a[d] = turned;
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status RunAppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) override {
    const int64_t dim = layer.head_dim;
    ForRows(k.rows, 2 * k.cols, [&](int64_t row) {
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        const int64_t to = (h * layer.capacity + at + row) * dim;
        Store(Row(k, row) + h * dim, dim, layer.dtype, layer.keys, to);
        Store(Row(v, row) + h * dim, dim, layer.dtype, layer.values, to);
      }
    });
    return absl::OkStatus();
  }

  absl::Status RunAttention(const AttentionArgs& args) override;
  absl::Status RunScoreColumnMax(const ScoreArgs& args) override;

 private:
  // run(row) for every row, `cost` elements each.
  template <typename Run>
  void ForRows(int64_t rows, int64_t cost, Run run) {
    const int64_t step = std::max<int64_t>(1, kElementsPerTask / cost);
    pool_.For(DivideUp(rows, step), [&](int64_t task) {
      const int64_t end = std::min(rows, (task + 1) * step);
      for (int64_t row = task * step; row < end; ++row) run(row);
    });
  }

  static void Store(const float* from, int64_t count, DType dtype, void* to, int64_t at) {
    const size_t size = static_cast<size_t>(count);
    const std::span<const float> values(from, size);
    if (dtype == DType::kF32) {
      std::copy(from, from + count, static_cast<float*>(to) + at);
    } else if (dtype == DType::kF16) {
      ConvertFromFloat(values, std::span<float16>(static_cast<float16*>(to) + at, size));
    } else {
      ConvertFromFloat(values, std::span<bfloat16>(static_cast<bfloat16*>(to) + at, size));
    }
  }

  // Copies query rows [begin, begin + count) of KV head `head`, scaled. Such a row is (row of the
  // pass, query head of the group), group fastest, so that a causal tile spans few rows.
  static void GatherQueries(const TensorView& q, int64_t head, int64_t group, int64_t dim,
                            int64_t begin, int64_t count, float scale, float* to) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = (begin + r) / group;
      const float* from = Row(q, row) + (head * group + (begin + r) % group) * dim;
      for (int64_t d = 0; d < dim; ++d) to[r * dim + d] = from[d] * scale;
    }
  }

  // Brings the tile's running softmax up to date with keys [begin, end) of `piece`.
  // `first` is the tile's first query, counted as in GatherQueries.
  void Attend(const KeyPiece& piece, int64_t begin, int64_t end, DType dtype, int64_t dim,
              int64_t padded, int64_t first, int64_t queries, int64_t group, Tile& tile) const;

  // Partial results of one (head, tile of queries) over part of its keys.
  struct Part {
    int64_t head = 0;
    int64_t first = 0;  // Query.
    int64_t queries = 0;
    int64_t key_begin = 0;  // Counted over all pieces of the head.
    int64_t key_end = 0;
  };

  ThreadPool pool_;
  mutable ScratchPool scratch_;
  const CpuKernels& kernels_;
  const bool bf16_products_;  // Of linear layers with bf16 weights.
};

void CpuBackend::Attend(const KeyPiece& piece, int64_t begin, int64_t end, DType dtype, int64_t dim,
                        int64_t padded, int64_t first, int64_t queries, int64_t group,
                        Tile& tile) const {
  const int64_t row_bytes = dim * DTypeBytes(dtype);
  const KvElement element = ElementOf(dtype);
  const bool few = queries <= kFewQueries && dim % kKernelPad == 0;
  // The last query of the tile sees farthest, the first one begins earliest.
  end = std::min(end, piece.seen_by_first + (first + queries - 1) / group);
  begin = std::max(begin, piece.hidden_to_first + first / group);
  for (int64_t at = begin; at < end; at += kTileKeys) {
    const int64_t keys = std::min(kTileKeys, end - at);
    const int64_t columns = PadUp(keys);
    if (few) {
      kernels_.few_logits(tile.q, queries, dim, piece.keys + at * row_bytes, element, keys,
                          tile.logits, kTileKeys);
    } else {
      kernels_.load_transposed(piece.keys + at * row_bytes, element, keys, dim, tile.keys, columns);
      kernels_.multiply(tile.q, dim, tile.keys, columns, tile.logits, kTileKeys, queries, columns,
                        dim, /*accumulate=*/false);
    }
    for (int64_t r = 0; r < queries; ++r) {
      const int64_t seen = piece.seen_by_first + (first + r) / group - at;
      const int64_t hidden = piece.hidden_to_first + (first + r) / group - at;
      if (hidden > 0) {
        std::fill_n(tile.logits + r * kTileKeys, std::min(hidden, keys), kMinusInfinity);
      }
      kernels_.softmax_step(tile.logits + r * kTileKeys, columns,
                            std::clamp<int64_t>(seen, 0, keys), tile.maximum + r, tile.sum + r,
                            tile.out + r * padded, padded);
    }
    if (padded == 0) continue;
    if (few) {
      kernels_.few_values(tile.logits, kTileKeys, queries, dim, piece.values + at * row_bytes,
                          element, keys, tile.out, padded);
      continue;
    }
    for (int64_t j = 0; j < keys; ++j) {
      kernels_.load(piece.values + (at + j) * row_bytes, element, dim, tile.values + j * padded);
    }
    kernels_.multiply(tile.logits, kTileKeys, tile.values, padded, tile.out, padded, queries,
                      padded, keys, /*accumulate=*/true);
  }
}

absl::Status CpuBackend::RunAttention(const AttentionArgs& args) {
  const KvLayerView& tail = args.tail;
  const int64_t heads = tail.kv_heads;
  const int64_t dim = tail.head_dim;
  const int64_t padded = PadUp(dim);
  const int64_t group = args.q.cols / (heads * dim);
  const int64_t queries = args.q.rows * group;  // Of one KV head.

  // Each piece of a head's keys, with the number of its rows before it; returns their number.
  const auto pieces_of = [&](int64_t head, auto visit) {
    int64_t total = args.tail_rows;
    if (args.spans != nullptr) {
      for (const RowSpan& span : (*args.spans)[static_cast<size_t>(head)]) total += span.rows;
    }
    // The first query sees all but the last q.rows - 1 rows; the window ends there.
    const int64_t hidden = args.window == 0 ? -kSeenByAll : total - args.q.rows + 1 - args.window;
    int64_t before = 0;
    if (args.spans != nullptr) {
      for (const RowSpan& span : (*args.spans)[static_cast<size_t>(head)]) {
        visit(KeyPiece{.keys = span.keys,
                       .values = span.values,
                       .rows = span.rows,
                       .seen_by_first = kSeenByAll,
                       .hidden_to_first = hidden - before},
              before);
        before += span.rows;
      }
    }
    KeyPiece own = PieceOf(tail, head, 0, args.tail_rows, args.tail_rows - args.q.rows + 1);
    own.hidden_to_first = hidden - before;
    visit(own, before);
    return total;
  };

  std::vector<Part> parts;  // Ordered by head, query, key.
  const bool split = queries <= kSplitQueriesMax;
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t keys = pieces_of(head, [](const KeyPiece&, int64_t) {});
    // The last tiles of a causal pass see most keys: first come, they are done first.
    for (int64_t tile = DivideUp(queries, kTileQueries) - 1; tile >= 0; --tile) {
      const int64_t first = tile * kTileQueries;
      const int64_t step = split ? kSplitKeys : keys;
      for (int64_t key = 0; key < keys; key += step) {
        parts.push_back({.head = head,
                         .first = first,
                         .queries = std::min(kTileQueries, queries - first),
                         .key_begin = key,
                         .key_end = std::min(keys, key + step)});
      }
    }
  }
  // Where nothing is split a task writes its result itself; otherwise here, then merged.
  const int64_t partial_floats = queries * (padded + 2);
  const int64_t partials = split ? static_cast<int64_t>(parts.size()) : 0;
  ScratchPool::Lease partial = scratch_.Borrow(std::max<int64_t>(1, partials * partial_floats));
  std::atomic<bool> no_memory{partial.data() == nullptr};

  const auto write = [&](const Part& part, const float* out, const float* sum) {
    for (int64_t r = 0; r < part.queries; ++r) {
      const int64_t query = part.first + r;
      float* to = Row(args.out, query / group) + (part.head * group + query % group) * dim;
      for (int64_t d = 0; d < dim; ++d) to[d] = out[r * padded + d] / sum[r];
    }
  };
  pool_.For(static_cast<int64_t>(parts.size()), [&](int64_t index) {
    const Part& part = parts[static_cast<size_t>(index)];
    ScratchPool::Lease memory = scratch_.Borrow(Tile::Floats(part.queries, dim, padded));
    if (memory.data() == nullptr || partial.data() == nullptr) {
      no_memory.store(true, std::memory_order_relaxed);
      return;
    }
    Tile tile(memory.data(), part.queries, dim, padded);
    GatherQueries(args.q, part.head, group, dim, part.first, part.queries, args.scale, tile.q);
    std::fill_n(tile.maximum, part.queries, kMinusInfinity);
    std::fill_n(tile.sum, part.queries, 0.0f);
    std::fill_n(tile.out, part.queries * padded, 0.0f);
    std::fill_n(tile.values, kTileKeys * padded, 0.0f);  // The padding must be finite.
    pieces_of(part.head, [&](const KeyPiece& piece, int64_t before) {
      const int64_t begin = std::max<int64_t>(0, part.key_begin - before);
      const int64_t end = std::min(piece.rows, part.key_end - before);
      if (begin >= end) return;
      Attend(piece, begin, end, tail.dtype, dim, padded, part.first, part.queries, group, tile);
    });
    if (!split) {
      write(part, tile.out, tile.sum);
      return;
    }
    float* to = partial.data() + index * partial_floats;  // out, maximum, sum
    std::copy_n(tile.out, queries * padded, to);
    std::copy_n(tile.maximum, queries, to + queries * padded);
    std::copy_n(tile.sum, queries, to + queries * (padded + 1));
  });
  if (no_memory) return absl::ResourceExhaustedError("attention: no memory for scratch");
  if (!split) return absl::OkStatus();

  // Merges the parts of each head, in the order of keys, into the first.
  for (size_t index = 0; index < parts.size();) {
    float* out = partial.data() + static_cast<int64_t>(index) * partial_floats;
    float* maximum = out + queries * padded;
    float* sum = maximum + queries;
    const Part& part = parts[index];
    for (++index; index < parts.size() && parts[index].head == part.head; ++index) {
      const float* other = partial.data() + static_cast<int64_t>(index) * partial_floats;
      const float* other_maximum = other + queries * padded;
      const float* other_sum = other_maximum + queries;
      for (int64_t r = 0; r < queries; ++r) {
        if (other_maximum[r] == kMinusInfinity) continue;
        const float top = std::max(maximum[r], other_maximum[r]);
        const float mine = std::exp(maximum[r] - top);
        const float theirs = std::exp(other_maximum[r] - top);
        for (int64_t d = 0; d < dim; ++d) {
          out[r * padded + d] = out[r * padded + d] * mine + other[r * padded + d] * theirs;
        }
        sum[r] = sum[r] * mine + other_sum[r] * theirs;
        maximum[r] = top;
      }
    }
    write(part, out, sum);
  }
  return absl::OkStatus();
}

// Two passes over the logits, neither of which keeps them: the normaliser of every query row, then
// the maximum of every column.
absl::Status CpuBackend::RunScoreColumnMax(const ScoreArgs& args) {
  const KvLayerView& cache = args.cache;
  const int64_t heads = cache.kv_heads;
  const int64_t dim = cache.head_dim;
  const int64_t group = args.q.cols / (heads * dim);
  const int64_t queries = args.q.rows * group;
  const int64_t tiles = DivideUp(queries, kTileQueries);
  const int64_t columns = args.chunk_end - args.chunk_begin;
  const int64_t row_bytes = dim * DTypeBytes(cache.dtype);

  ScratchPool::Lease shared = scratch_.Borrow(heads * queries * (dim + 1));
  if (shared.data() == nullptr) {
    return absl::ResourceExhaustedError("score: no memory for scratch");
  }
  float* const all_q = shared.data();                    // [heads, queries, dim], scaled
  float* const all_lse = all_q + heads * queries * dim;  // [heads, queries]
  std::atomic<bool> no_memory{false};

  pool_.For(heads * tiles, [&](int64_t task) {
    const int64_t head = task / tiles;
    const int64_t first = task % tiles * kTileQueries;
    const int64_t count = std::min(kTileQueries, queries - first);
    ScratchPool::Lease memory = scratch_.Borrow(Tile::Floats(count, dim, 0));
    if (memory.data() == nullptr) {
      no_memory.store(true, std::memory_order_relaxed);
      return;
    }
    Tile tile(memory.data(), count, dim, 0);
    tile.q = all_q + (head * queries + first) * dim;
    GatherQueries(args.q, head, group, dim, first, count, args.scale, tile.q);
    std::fill_n(tile.maximum, count, kMinusInfinity);
    std::fill_n(tile.sum, count, 0.0f);
    const bool full = args.full_rows > 0;
    for (const KeyPiece& piece :
         {PieceOf(cache, head, 0, full ? args.full_rows : args.sink_rows, kSeenByAll),
          PieceOf(cache, head, args.chunk_begin, full ? args.chunk_begin : args.chunk_end,
                  kSeenByAll),
          PieceOf(args.repeat, head, 0, args.q.rows, 1)}) {
      Attend(piece, 0, piece.rows, cache.dtype, dim, 0, first, count, group, tile);
    }
    for (int64_t r = 0; r < count; ++r) {
      // A row's offset and its normaliser are the same to every column.
      const float offset = args.row_offsets == nullptr ? 0 : args.row_offsets[(first + r) / group];
      all_lse[head * queries + first + r] = tile.maximum[r] + std::log(tile.sum[r]) - offset;
    }
  });

  const int64_t key_tiles = DivideUp(columns, kTileKeys);
  pool_.For(heads * key_tiles, [&](int64_t task) {
    const int64_t head = task / key_tiles;
    const int64_t begin = task % key_tiles * kTileKeys;
    const int64_t keys = std::min(kTileKeys, columns - begin);
    const int64_t width = PadUp(keys);
    ScratchPool::Lease memory = scratch_.Borrow(Tile::Floats(kTileQueries, dim, 0));
    if (memory.data() == nullptr || no_memory) {
      no_memory.store(true, std::memory_order_relaxed);
      return;
    }
    Tile tile(memory.data(), kTileQueries, dim, 0);
    const KeyPiece piece = PieceOf(cache, head, args.chunk_begin, args.chunk_end, kSeenByAll);
    kernels_.load_transposed(piece.keys + begin * row_bytes, ElementOf(cache.dtype), keys, dim,
                             tile.keys, width);
    float best[kTileKeys];
    std::fill_n(best, kTileKeys, kMinusInfinity);
    for (int64_t first = 0; first < queries; first += kTileQueries) {
      const int64_t count = std::min(kTileQueries, queries - first);
      kernels_.multiply(all_q + (head * queries + first) * dim, dim, tile.keys, width, tile.logits,
                        kTileKeys, count, width, dim, /*accumulate=*/false);
      for (int64_t r = 0; args.key_offsets != nullptr && r < count; ++r) {
        const float* offsets = args.key_offsets +
                               (head * group + (first + r) % group) * args.key_offset_stride +
                               begin;
        for (int64_t j = 0; j < keys; ++j) tile.logits[r * kTileKeys + j] += offsets[j];
      }
      kernels_.column_max(tile.logits, kTileKeys, count, width, all_lse + head * queries + first,
                          best);
    }
    float* out = args.out + head * args.out_stride + begin;
    const bool clamp = args.row_offsets == nullptr && args.key_offsets == nullptr;
    for (int64_t j = 0; j < keys; ++j) out[j] = clamp && best[j] > 0 ? 0.0f : best[j];
  });
  if (no_memory) return absl::ResourceExhaustedError("score: no memory for scratch");
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(CpuBackendOptions options) {
  const CpuKernels* chosen = options.kernels.empty() ? &BestCpuKernels() : nullptr;
  for (const CpuKernels* kernels : {Avx512Kernels(), Avx2Kernels(), BaselineKernels()}) {
    if (kernels != nullptr && options.kernels == kernels->name) chosen = kernels;
  }
  // Narrower kernels are asked for to see what a lesser machine would compute.
  const bool bf16 = chosen != nullptr && chosen == Avx512Kernels() && OnednnHasBf16Products();
  if (chosen == nullptr || (options.compute == CpuCompute::kBf16 && !bf16)) return nullptr;
  return std::make_unique<CpuBackend>(options.threads, *chosen,
                                      bf16 && options.compute != CpuCompute::kF32);
}

}  // namespace kvtier
