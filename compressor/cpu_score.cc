#include "compressor/cpu_score.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace kvtier {
namespace {

constexpr int64_t kTileKeys = 128;
// Queries of a tile: as many as keep its logits within half of a core's second-level cache.
constexpr int64_t kTileQueriesMax = 48;
constexpr int64_t kTileFloats = int64_t{1} << 17;
// Each part of a head's queries keeps a maximum per column. A constant: see RunCpuScore.
constexpr int64_t kPartsMax = 16;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Keys of the denominator that lie together.
struct Piece {
  int64_t begin = 0;  // Rows of the cache, or of the repeat rows.
  int64_t end = 0;
  bool repeat = false;
  bool scored = false;     // The chunk: its logits are kept.
  int64_t packed_at = -1;  // First word in a head's packed keys; -1: packed again for each tile.
};

// One call of RunCpuScore.
class Scorer {
 public:
  Scorer(const ScoreArgs& args, const CpuResources& resources)
      : args_(args),
        resources_(resources),
        kernels_(resources.ProductsWith(args.cache.dtype)),
        element_(ElementOf(args.cache.dtype)),
        heads_(args.cache.kv_heads),
        dim_(args.cache.head_dim),
        words_(DivideUp(dim_, kernels_.factors_per_word)),
        group_(args.q.cols / (heads_ * dim_)),
        queries_(args.q.rows * group_),
        columns_(args.chunk_end - args.chunk_begin),
        width_(PadUp(columns_)),
        // Rows a power of two apart would share the sets of a cache.
        stride_(width_ + kKernelPad),
        tile_queries_(std::clamp<int64_t>(kTileFloats / stride_, 1, kTileQueriesMax)),
        tiles_(DivideUp(queries_, tile_queries_)),
        parts_(std::min(tiles_, kPartsMax)) {
    const bool full = args.full_rows > 0;
    Add({.begin = 0, .end = full ? args.chunk_begin : args.sink_rows}, /*pack=*/!full);
    Add({.begin = args.chunk_begin, .end = args.chunk_end, .scored = true}, true);
    if (full) Add({.begin = args.chunk_end, .end = args.full_rows}, false);
    Add({.begin = 0, .end = args.q.rows, .repeat = true}, true);
  }

  absl::Status Run();

 private:
  void Add(Piece piece, bool pack) {
    if (piece.begin >= piece.end) return;
    if (pack) {
      piece.packed_at = head_words_;
      head_words_ += DivideUp(piece.end - piece.begin, kTileKeys) * kTileKeys * words_;
    }
    pieces_[piece_count_++] = piece;
  }
  KeyPiece KeysOf(const Piece& piece, int64_t head) const {
    return piece.repeat ? PieceOf(args_.repeat, head, 0, piece.end, 1)
                        : PieceOf(args_.cache, head, piece.begin, piece.end, kSeenByAll);
  }
  void PackTile(const KeyPiece& keys, int64_t at, float* to) const {
    kernels_.load_transposed(keys.keys + at * dim_ * DTypeBytes(args_.cache.dtype), element_,
                             std::min(kTileKeys, keys.rows - at), dim_, to, kTileKeys);
  }
  std::span<const Piece> pieces() const { return std::span(pieces_).first(piece_count_); }
  void PackHead(int64_t head, float* to) const;
  // Logits of queries [first, first + count) and, from them, their part of the column maxima.
  void RunTile(int64_t head, int64_t first, int64_t count, const float* packed, float* memory,
               float* best) const;
  int64_t TileMemoryFloats() const {
    return tile_queries_ * (words_ + stride_ + kTileKeys + 3) + words_ * kTileKeys;
  }

  const ScoreArgs& args_;
  const CpuResources& resources_;
  const CpuKernels& kernels_;
  const KvElement element_;
  const int64_t heads_;
  const int64_t dim_;
  const int64_t words_;  // Of one key or query.
  const int64_t group_;
  const int64_t queries_;  // Of one KV head.
  const int64_t columns_;
  const int64_t width_;  // columns_, padded.
  const int64_t stride_;
  const int64_t tile_queries_;
  const int64_t tiles_;          // Of one KV head.
  const int64_t parts_;          // Of one KV head: runs of tiles.
  std::array<Piece, 4> pieces_;  // Those that have rows; the constructor adds no more.
  size_t piece_count_ = 0;
  int64_t head_words_ = 0;  // Packed keys of one head.
};

void Scorer::PackHead(int64_t head, float* to) const {
  for (const Piece& piece : pieces()) {
    if (piece.packed_at < 0) continue;
    const KeyPiece keys = KeysOf(piece, head);
    for (int64_t at = 0; at < keys.rows; at += kTileKeys) {
      PackTile(keys, at, to + piece.packed_at + at * words_);
    }
  }
}

void Scorer::RunTile(int64_t head, int64_t first, int64_t count, const float* packed, float* memory,
                     float* best) const {
  float* const q = memory;                                // [count, words]
  float* const kept = q + tile_queries_ * words_;         // [count, stride]: the chunk's logits
  float* const passing = kept + tile_queries_ * stride_;  // [count, kTileKeys]
  float* const streamed = passing + tile_queries_ * kTileKeys;  // [words, kTileKeys]
  float* const maximum = streamed + words_ * kTileKeys;         // [count]
  float* const sum = maximum + tile_queries_;                   // [count]
  float* const lse = sum + tile_queries_;                       // [count]
  for (int64_t r = 0; r < count; ++r) {
    kernels_.load_query(QueryAt(args_.q, head, group_, dim_, first + r), dim_, q + r * words_);
    maximum[r] = kMinusInfinity;
    sum[r] = 0;
  }
  const int64_t last_row = (first + count - 1) / group_;
  for (const Piece& piece : pieces()) {
    const KeyPiece keys = KeysOf(piece, head);
    const int64_t end = keys.SeenFrom(0, keys.rows, last_row);
    for (int64_t at = 0; at < end; at += kTileKeys) {
      const int64_t tile_end = std::min(at + kTileKeys, end);
      const int64_t n = PadUp(tile_end - at);
      const float* factors = streamed;
      if (piece.packed_at >= 0) {
        factors = packed + piece.packed_at + at * words_;
      } else {
        PackTile(keys, at, streamed);
      }
      float* const logits = piece.scored ? kept + at : passing;
      const int64_t logits_stride = piece.scored ? stride_ : kTileKeys;
      kernels_.multiply(q, words_, factors, kTileKeys, logits, logits_stride, count, n, words_,
                        /*accumulate=*/false);
      for (int64_t r = 0; r < count; ++r) {
        kernels_.normaliser_step(logits + r * logits_stride, n,
                                 keys.SeenFrom(at, tile_end, (first + r) / group_), args_.scale,
                                 maximum + r, sum + r);
      }
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    // A row's offset and its normaliser are the same to every column.
    const float offset = args_.row_offsets == nullptr ? 0 : args_.row_offsets[(first + r) / group_];
    lse[r] = maximum[r] + std::log(sum[r]) - offset;
  }
  float scale = args_.scale;
  if (args_.key_offsets != nullptr) {
    for (int64_t r = 0; r < count; ++r) {
      const float* offsets =
          args_.key_offsets + (head * group_ + (first + r) % group_) * args_.key_offset_stride;
      for (int64_t j = 0; j < columns_; ++j) {
        kept[r * stride_ + j] = kept[r * stride_ + j] * scale + offsets[j];
      }
    }
    scale = 1;
  }
  kernels_.column_max(kept, stride_, count, width_, scale, lse, best);
}

absl::Status Scorer::Run() {
  const absl::Status no_scratch = absl::ResourceExhaustedError("score: no memory for scratch");
  // The keys are packed once for all tiles; how many parts there are depends on the shapes alone,
  // as does the result: a maximum does not depend on its order.
  ScratchPool::Lease shared =
      resources_.scratch.Borrow(heads_ * (head_words_ + parts_ * width_) + kPartsMax + width_);
  if (shared.data() == nullptr) return no_scratch;
  float* const packed = shared.data();                     // [heads, head_words]
  float* const maxima = packed + heads_ * head_words_;     // [heads, parts, width]
  float* const zeros = maxima + heads_ * parts_ * width_;  // [parts]
  float* const best = zeros + kPartsMax;                   // [width]
  std::fill_n(maxima, heads_ * parts_ * width_, kMinusInfinity);
  std::fill_n(zeros, kPartsMax, 0.0f);

  resources_.pool.For(heads_, [&](int64_t head) { PackHead(head, packed + head * head_words_); });
  std::atomic<bool> no_memory{false};
  resources_.pool.For(heads_ * parts_, [&](int64_t task) {
    const int64_t head = task / parts_;
    const int64_t part = task % parts_;
    ScratchPool::Lease memory = resources_.scratch.Borrow(TileMemoryFloats());
    if (memory.data() == nullptr) {
      no_memory.store(true, std::memory_order_relaxed);
      return;
    }
    const int64_t end = (part + 1) * tiles_ / parts_;
    for (int64_t tile = part * tiles_ / parts_; tile < end; ++tile) {
      const int64_t first = tile * tile_queries_;
      RunTile(head, first, std::min(tile_queries_, queries_ - first), packed + head * head_words_,
              memory.data(), maxima + task * width_);
    }
  });
  if (no_memory) return no_scratch;

  const bool clamp = args_.row_offsets == nullptr && args_.key_offsets == nullptr;
  for (int64_t head = 0; head < heads_; ++head) {
    std::fill_n(best, width_, kMinusInfinity);
    kernels_.column_max(maxima + head * parts_ * width_, width_, parts_, width_, /*scale=*/1, zeros,
                        best);
    float* out = args_.out + head * args_.out_stride;
    for (int64_t j = 0; j < columns_; ++j) out[j] = clamp && best[j] > 0 ? 0.0f : best[j];
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCpuScore(const ScoreArgs& args, const CpuResources& resources) {
  return Scorer(args, resources).Run();
}

}  // namespace kvtier
