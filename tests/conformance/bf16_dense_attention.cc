// Attention of many rows over a dense cache, which backends may give to a library: the pieces of a
// prefill, the repeat pass of scoring, a tail behind its context.
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/bf16_conformance.h"

namespace kvtier {
namespace {

constexpr double kRounding = 0x1p-8;  // Of an output to bf16 is half of that.

enum class Context {
  kNone,    // A prefill: all rows are the tail's.
  kApart,   // A repeat pass: a cache of its own.
  kBehind,  // The tail is what lies behind the context in the same cache.
};

struct DenseCase {
  Context context = Context::kNone;
  int64_t heads = 2;
  int64_t group = 2;
  int64_t dim = 64;
  int64_t rows = 70;         // Of queries.
  int64_t context_rows = 0;  // Of each head, but for Context::kNone.
  int64_t tail_before = 0;   // Rows of the tail before the queries' own.
  int64_t room = 0;          // Rows of the cache behind the last one.
  int64_t window = 0;

  std::string ToString() const {
    return absl::StrCat("context ", static_cast<int>(context), " heads ", heads, " x ", group,
                        " dim ", dim, " rows ", rows, " context ", context_rows, " before ",
                        tail_before, " room ", room, " window ", window);
  }
};

Floats Attend(Backend& backend, const DenseCase& c) {
  std::mt19937_64 random(23);
  const int64_t width = c.heads * c.group * c.dim;
  const auto layer = [&](int64_t capacity) {
    const Floats keys = RandomFloats(random, c.heads * capacity * c.dim);
    return MakeLayer(backend, keys, RandomFloats(random, c.heads * capacity * c.dim), DType::kBf16,
                     c.heads, capacity, c.dim);
  };
  Floats queries = RandomFloats(random, c.rows * width, 2);
  RoundToBf16(queries);
  const Tensor q = MakeActivations(backend, queries, c.rows, width);
  const int64_t tail_rows = c.tail_before + c.rows;
  const bool behind = c.context == Context::kBehind;
  const Layer context = layer(c.context_rows + (behind ? tail_rows : 0) + c.room);
  const Layer own = layer(tail_rows + c.room);
  KvLayerView tail = own.view;
  if (behind) {
    tail = context.view;
    const int64_t bytes = c.context_rows * c.dim * DTypeBytes(DType::kBf16);
    tail.keys = static_cast<std::byte*>(tail.keys) + bytes;
    tail.values = static_cast<std::byte*>(tail.values) + bytes;
  }
  std::vector<RowSpan> spans(c.heads);
  HeadSpans heads;
  for (int64_t h = 0; h < c.heads; ++h) {
    const int64_t at = h * context.view.capacity * c.dim * DTypeBytes(DType::kBf16);
    spans[h].keys = static_cast<const std::byte*>(context.view.keys) + at;
    spans[h].values = static_cast<const std::byte*>(context.view.values) + at;
    spans[h].rows = static_cast<uint32_t>(c.context_rows);
    heads.push_back(std::span<const RowSpan>(&spans[h], c.context_rows > 0 ? 1 : 0));
  }
  auto out = backend.Allocate(backend.activation_dtype(), c.rows, width);
  KVTIER_EXPECT_OK(out);
  KVTIER_EXPECT_OK(backend.Attention({.q = q,
                                      .spans = c.context == Context::kNone ? nullptr : &heads,
                                      .span_dtype = DType::kBf16,
                                      .tail = tail,
                                      .tail_rows = tail_rows,
                                      .scale = 1 / std::sqrt(static_cast<float>(c.dim)),
                                      .window = c.window,
                                      .out = *out}));
  return Read(backend, *out);
}

TEST_P(Bf16ConformanceTest, DenseAttentionEqualsTheReference) {
  for (const DenseCase& c : {
           // A prompt in one piece, and the pieces of one.
           DenseCase{.rows = 64},
           DenseCase{.group = 4, .dim = 128, .rows = 65, .tail_before = 129, .room = 200},
           DenseCase{.heads = 1, .group = 7, .rows = 128, .tail_before = 64, .room = 1},
           DenseCase{.dim = 256, .rows = 70, .tail_before = 3},
           DenseCase{.dim = 40, .rows = 66, .tail_before = 1, .room = 5},
           // A sliding layer.
           DenseCase{.rows = 90, .tail_before = 100, .room = 40, .window = 37},
           DenseCase{.rows = 90, .window = 64},
           DenseCase{.rows = 70, .tail_before = 30, .window = 1000},
           // A chunk's repeat pass.
           DenseCase{.context = Context::kApart, .group = 4, .rows = 81, .context_rows = 333},
           DenseCase{.context = Context::kApart, .dim = 128, .rows = 64, .context_rows = 1},
           DenseCase{
               .context = Context::kApart, .heads = 1, .rows = 70, .context_rows = 257, .room = 31},
           DenseCase{.context = Context::kApart,
           .rows = 70,
           .context_rows = 100,
           .tail_before = 65,
           .room = 9},
           DenseCase{.context = Context::kApart, .rows = 80, .context_rows = 100, .window = 90},
           DenseCase{.context = Context::kBehind, .group = 4, .rows = 65, .context_rows = 200},
           DenseCase{.context = Context::kBehind,
           .rows = 80,
           .context_rows = 100,
           .room = 7,
           .window = 90},
       }) {
    SCOPED_TRACE(c.ToString());
    const Floats mine = Attend(*backend_, c);
    // Weights that tensor cores take as bf16, and the outputs of two calls before they are merged,
    // are off by 2^-9 of themselves; values are of size 1.
    ExpectNear(mine, Attend(*reference_, c), 0x1p-8 + 1e-5, kRounding);
    if (HasFatalFailure()) return;
    EXPECT_EQ(Attend(*backend_, c), mine) << "a second run differs";
  }
}

}  // namespace
}  // namespace kvtier
