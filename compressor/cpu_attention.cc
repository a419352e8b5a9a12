#include "compressor/cpu_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

namespace kvtier {
namespace {

// Query rows and keys of one tile: its logits (96 KiB) and its keys and values (64 KiB each at
// head_dim 128 in fp32, half in bf16) stay in a core's second-level cache. Packing the keys costs
// as much as a few queries, so that a tile has many.
constexpr int64_t kTileQueries = 192;
constexpr int64_t kTileKeys = 128;
// A few queries over many keys (decoding) are cut into parts of this many keys, merged in order.
constexpr int64_t kSplitKeys = 2048;
constexpr int64_t kSplitQueriesMax = 16;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// What one task keeps of its query rows, in one borrowed buffer.
struct Tile {
  // `queries` rows of `dim` floats; `padded` is dim padded; `coded`: some rows have to be decoded.
  static int64_t Floats(int64_t queries, int64_t dim, int64_t padded, bool coded) {
    return queries * (dim + kTileKeys + padded + 2) + kTileKeys * (dim + padded) +
           (coded ? kTileKeys * dim : 0);
  }
  Tile(float* memory, int64_t queries, int64_t dim, int64_t padded)
      : logits(memory),
        keys(logits + queries * kTileKeys),
        values(keys + dim * kTileKeys),
        out(values + kTileKeys * padded),
        q(out + queries * padded),
        maximum(q + queries * dim),
        sum(maximum + queries),
        decoded(sum + queries) {}
  float* logits;   // [queries, kTileKeys], then weights
  float* keys;     // [words of dim, kTileKeys] factors, transposed
  float* values;   // [words of kTileKeys, padded] factors
  float* out;      // [queries, padded]
  float* q;        // [queries, words of dim] factors
  float* maximum;  // [queries], scaled
  float* sum;      // [queries]
  float* decoded;  // [kTileKeys, dim] of fp32 or bf16, if rows are coded
};

// Some queries of one head over some of its keys.
struct Part {
  int64_t head = 0;
  int64_t first = 0;  // Query.
  int64_t queries = 0;
  int64_t key_begin = 0;  // Counted over all pieces of the head.
  int64_t key_end = 0;
};

// One call of RunCpuAttention.
class Attender {
 public:
  Attender(const AttentionArgs& args, const CpuResources& resources)
      : args_(args),
        resources_(resources),
        element_(ElementOf(args.tail.dtype)),
        heads_(args.tail.kv_heads),
        dim_(args.tail.head_dim),
        padded_(PadUp(dim_)),
        row_bytes_(dim_ * DTypeBytes(args.tail.dtype)),
        group_(args.q.cols / (heads_ * dim_)),
        queries_(args.q.rows * group_),
        split_(queries_ <= kSplitQueriesMax),
        coded_(HasCodedRows(args)) {}

  absl::Status Run();

 private:
  // Calls visit(piece, keys before it) for the pieces of a head, in order; returns all keys.
  template <typename Visit>
  int64_t VisitPieces(int64_t head, Visit visit) const {
    int64_t total = args_.tail_rows;
    if (args_.spans != nullptr) {
      for (const RowSpan& span : (*args_.spans)[static_cast<size_t>(head)]) total += span.rows;
    }
    // The first query sees all but the last q.rows - 1 rows; its window ends there.
    const int64_t hidden =
        args_.window == 0 ? -kSeenByAll : total - args_.q.rows + 1 - args_.window;
    int64_t before = 0;
    if (args_.spans != nullptr) {
      for (const RowSpan& span : (*args_.spans)[static_cast<size_t>(head)]) {
        visit(KeyPiece{.keys = span.keys,
                       .values = span.values,
                       .codec = span.codec,
                       .key_scales = span.key_scales,
                       .value_scales = span.value_scales,
                       .rows = span.rows,
                       .seen_by_first = kSeenByAll,
                       .hidden_to_first = hidden - before},
              before);
        before += span.rows;
      }
    }
    KeyPiece own =
        PieceOf(args_.tail, head, 0, args_.tail_rows, args_.tail_rows - args_.q.rows + 1);
    own.hidden_to_first = hidden - before;
    visit(own, before);
    return total;
  }

  static bool HasCodedRows(const AttentionArgs& args) {
    if (args.spans == nullptr) return false;
    for (const std::span<const RowSpan>& head : *args.spans) {
      for (const RowSpan& span : head) {
        if (span.codec != CodecId::kRaw) return true;
      }
    }
    return false;
  }

  std::vector<Part> CutIntoParts() const;
  bool IsFew(const Part& part) const {
    return part.queries <= kFewQueries && dim_ % kKernelPad == 0;
  }
  // A few queries (decoding) are bound by reading keys, not by products: always in fp32.
  const CpuKernels& KernelsOf(const Part& part) const {
    return split_ || IsFew(part) ? resources_.kernels : resources_.ProductsWith(args_.tail.dtype);
  }
  void StartTile(const Part& part, Tile& tile) const;

  // Keys or values of a piece from row `at` on, ready for the kernels that work on tiles.
  struct Rows {
    const void* rows = nullptr;
    KvElement element = KvElement::kF32;
  };
  // Raw rows where they lie; coded ones decoded into the tile, as floats or, where products take
  // bf16, as those.
  Rows TileRows(const CpuKernels& kernels, const KeyPiece& piece, bool of_keys, int64_t at,
                int64_t count, Tile& tile) const;
  // logits [queries, count] of a few queries, and the sum of weighted values; rows as they lie.
  void FewLogits(const Part& part, const KeyPiece& piece, int64_t at, int64_t count,
                 Tile& tile) const;
  void FewValues(const Part& part, const KeyPiece& piece, int64_t at, int64_t count,
                 Tile& tile) const;
  // Brings the tile's running softmax up to date with keys [begin, end) of `piece`.
  void Attend(const Part& part, const KeyPiece& piece, int64_t begin, int64_t end,
              Tile& tile) const;
  void Write(const Part& part, const float* out, const float* sum) const;
  // Merges the parts of each head, in the order of keys, into the first, and writes it.
  void MergeAndWrite(const std::vector<Part>& parts, float* partial) const;
  int64_t PartialFloats() const { return queries_ * (padded_ + 2); }  // out, maximum, sum

  const AttentionArgs& args_;
  const CpuResources& resources_;
  const KvElement element_;
  const int64_t heads_;
  const int64_t dim_;
  const int64_t padded_;
  const int64_t row_bytes_;
  const int64_t group_;
  const int64_t queries_;  // Of one KV head.
  const bool split_;       // Parts of a head differ in their keys, and are merged.
  const bool coded_;       // Some rows are of a lossy codec.
};

std::vector<Part> Attender::CutIntoParts() const {
  std::vector<Part> parts;  // Ordered by head, query, key.
  for (int64_t head = 0; head < heads_; ++head) {
    const int64_t keys = VisitPieces(head, [](const KeyPiece&, int64_t) {});
    // The last tiles of a causal pass see most keys: they are done first.
    for (int64_t tile = DivideUp(queries_, kTileQueries) - 1; tile >= 0; --tile) {
      const int64_t first = tile * kTileQueries;
      const int64_t step = split_ ? kSplitKeys : keys;
      for (int64_t key = 0; key < keys; key += step) {
        parts.push_back({.head = head,
                         .first = first,
                         .queries = std::min(kTileQueries, queries_ - first),
                         .key_begin = key,
                         .key_end = std::min(keys, key + step)});
      }
    }
  }
  return parts;
}

void Attender::StartTile(const Part& part, Tile& tile) const {
  const CpuKernels& kernels = KernelsOf(part);
  const int64_t words = DivideUp(dim_, kernels.factors_per_word);
  for (int64_t r = 0; r < part.queries; ++r) {
    kernels.load_query(QueryAt(args_.q, part.head, group_, dim_, part.first + r), dim_,
                       tile.q + r * words);
  }
  std::fill_n(tile.maximum, part.queries, kMinusInfinity);
  std::fill_n(tile.sum, part.queries, 0.0f);
  std::fill_n(tile.out, part.queries * padded_, 0.0f);
}

Attender::Rows Attender::TileRows(const CpuKernels& kernels, const KeyPiece& piece, bool of_keys,
                                  int64_t at, int64_t count, Tile& tile) const {
  const std::byte* rows = of_keys ? piece.keys : piece.values;
  if (piece.codec == CodecId::kRaw) return {rows + at * row_bytes_, element_};
  const std::byte* scales = of_keys ? piece.key_scales : piece.value_scales;
  kernels.decode_rows(rows + at * CodeRowBytes(piece.codec, dim_),
                      scales + at * CodeScaleBytes(piece.codec), CodeOf(piece.codec), count, dim_,
                      tile.decoded);
  if (kernels.factors_per_word == 1) return {tile.decoded, KvElement::kF32};
  // In place: each bf16 is written at or before where its float was.
  auto* rounded = reinterpret_cast<uint16_t*>(tile.decoded);
  kernels.to_bf16(tile.decoded, count * dim_, rounded);
  return {rounded, KvElement::kBf16};
}

void Attender::FewLogits(const Part& part, const KeyPiece& piece, int64_t at, int64_t count,
                         Tile& tile) const {
  const CpuKernels& kernels = KernelsOf(part);
  if (piece.codec == CodecId::kRaw) {
    kernels.few_logits(tile.q, part.queries, dim_, piece.keys + at * row_bytes_, element_, count,
                       tile.logits, kTileKeys);
    return;
  }
  kernels.few_coded_logits(tile.q, part.queries, dim_,
                           piece.keys + at * CodeRowBytes(piece.codec, dim_),
                           piece.key_scales + at * CodeScaleBytes(piece.codec), CodeOf(piece.codec),
                           count, tile.logits, kTileKeys);
}

void Attender::FewValues(const Part& part, const KeyPiece& piece, int64_t at, int64_t count,
                         Tile& tile) const {
  const CpuKernels& kernels = KernelsOf(part);
  if (piece.codec == CodecId::kRaw) {
    kernels.few_values(tile.logits, kTileKeys, part.queries, dim_, piece.values + at * row_bytes_,
                       element_, count, tile.out, padded_);
    return;
  }
  kernels.few_coded_values(tile.logits, kTileKeys, part.queries, dim_,
                           piece.values + at * CodeRowBytes(piece.codec, dim_),
                           piece.value_scales + at * CodeScaleBytes(piece.codec),
                           CodeOf(piece.codec), count, tile.out, padded_);
}

void Attender::Attend(const Part& part, const KeyPiece& piece, int64_t begin, int64_t end,
                      Tile& tile) const {
  const CpuKernels& kernels = KernelsOf(part);
  const int64_t words = DivideUp(dim_, kernels.factors_per_word);
  const bool few = IsFew(part) && (piece.codec == CodecId::kRaw || dim_ % (2 * kKernelPad) == 0);
  // The last query of the tile sees farthest, the first one begins earliest.
  begin = std::max(begin, piece.hidden_to_first + part.first / group_);
  end = std::min(end, piece.SeenFrom(0, piece.rows, (part.first + part.queries - 1) / group_));
  for (int64_t at = begin; at < end; at += kTileKeys) {
    const int64_t keys = std::min(kTileKeys, end - at);
    const int64_t columns = PadUp(keys);
    if (few) {
      FewLogits(part, piece, at, keys, tile);
    } else {
      const Rows rows = TileRows(kernels, piece, /*of_keys=*/true, at, keys, tile);
      kernels.load_transposed(rows.rows, rows.element, keys, dim_, tile.keys, columns);
      kernels.multiply(tile.q, words, tile.keys, columns, tile.logits, kTileKeys, part.queries,
                       columns, words, /*accumulate=*/false);
    }
    for (int64_t r = 0; r < part.queries; ++r) {
      const int64_t hidden = piece.hidden_to_first + (part.first + r) / group_ - at;
      if (hidden > 0) {
        std::fill_n(tile.logits + r * kTileKeys, std::min(hidden, keys), kMinusInfinity);
      }
      kernels.softmax_step(tile.logits + r * kTileKeys, columns,
                           piece.SeenFrom(at, at + keys, (part.first + r) / group_), args_.scale,
                           tile.maximum + r, tile.sum + r, tile.out + r * padded_, padded_);
    }
    if (few) {
      FewValues(part, piece, at, keys, tile);
    } else {
      const Rows rows = TileRows(kernels, piece, /*of_keys=*/false, at, keys, tile);
      kernels.load_values(rows.rows, rows.element, keys, dim_, tile.values, padded_);
      kernels.multiply(tile.logits, kTileKeys, tile.values, padded_, tile.out, padded_,
                       part.queries, padded_, DivideUp(keys, kernels.factors_per_word),
                       /*accumulate=*/true);
    }
  }
}

void Attender::Write(const Part& part, const float* out, const float* sum) const {
  for (int64_t r = 0; r < part.queries; ++r) {
    const int64_t query = part.first + r;
    float* to = static_cast<float*>(args_.out.data) + query / group_ * args_.out.cols +
                (part.head * group_ + query % group_) * dim_;
    for (int64_t d = 0; d < dim_; ++d) to[d] = out[r * padded_ + d] / sum[r];
  }
}

void Attender::MergeAndWrite(const std::vector<Part>& parts, float* partial) const {
  for (size_t index = 0; index < parts.size();) {
    float* out = partial + static_cast<int64_t>(index) * PartialFloats();
    float* maximum = out + queries_ * padded_;
    float* sum = maximum + queries_;
    const Part& part = parts[index];
    for (++index; index < parts.size() && parts[index].head == part.head; ++index) {
      const float* other = partial + static_cast<int64_t>(index) * PartialFloats();
      const float* other_maximum = other + queries_ * padded_;
      const float* other_sum = other_maximum + queries_;
      for (int64_t r = 0; r < queries_; ++r) {
        if (other_maximum[r] == kMinusInfinity) continue;
        const float top = std::max(maximum[r], other_maximum[r]);
        const float mine = std::exp(maximum[r] - top);
        const float theirs = std::exp(other_maximum[r] - top);
        for (int64_t d = 0; d < dim_; ++d) {
          out[r * padded_ + d] = out[r * padded_ + d] * mine + other[r * padded_ + d] * theirs;
        }
        sum[r] = sum[r] * mine + other_sum[r] * theirs;
        maximum[r] = top;
      }
    }
    Write(part, out, sum);
  }
}

absl::Status Attender::Run() {
  const std::vector<Part> parts = CutIntoParts();
  // Where nothing is split a task writes its result itself; otherwise here, then merged.
  const int64_t partials = split_ ? static_cast<int64_t>(parts.size()) : 0;
  ScratchPool::Lease partial =
      resources_.scratch.Borrow(std::max<int64_t>(1, partials * PartialFloats()));
  std::atomic<bool> no_memory{partial.data() == nullptr};
  resources_.pool.For(static_cast<int64_t>(parts.size()), [&](int64_t index) {
    const Part& part = parts[static_cast<size_t>(index)];
    ScratchPool::Lease memory =
        resources_.scratch.Borrow(Tile::Floats(part.queries, dim_, padded_, coded_));
    if (memory.data() == nullptr || partial.data() == nullptr) {
      no_memory.store(true, std::memory_order_relaxed);
      return;
    }
    Tile tile(memory.data(), part.queries, dim_, padded_);
    StartTile(part, tile);
    VisitPieces(part.head, [&](const KeyPiece& piece, int64_t before) {
      const int64_t begin = std::max<int64_t>(0, part.key_begin - before);
      const int64_t end = std::min(piece.rows, part.key_end - before);
      if (begin < end) Attend(part, piece, begin, end, tile);
    });
    if (!split_) {
      Write(part, tile.out, tile.sum);
      return;
    }
    float* to = partial.data() + index * PartialFloats();
    std::copy_n(tile.out, queries_ * padded_, to);
    std::copy_n(tile.maximum, queries_, to + queries_ * padded_);
    std::copy_n(tile.sum, queries_, to + queries_ * (padded_ + 1));
  });
  if (no_memory) return absl::ResourceExhaustedError("attention: no memory for scratch");
  if (split_) MergeAndWrite(parts, partial.data());
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCpuAttention(const AttentionArgs& args, const CpuResources& resources) {
  return Attender(args, resources).Run();
}

}  // namespace kvtier
