// Attention: shapes, windows, codecs of the rows that it reads.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "kvcache/row_codec.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

struct AttentionCase {
  int64_t heads = 2;
  int64_t group = 1;
  int64_t dim = 64;
  int64_t rows = 1;                               // Of queries.
  std::vector<std::vector<uint32_t>> spans = {};  // [heads][spans] rows each
  int64_t tail_before = 0;                        // Tail rows before the new ones.
  DType dtype = DType::kF32;
  float q_size = 1;            // Large: peaked attention.
  int64_t window = 0;          // 0: none.
  bool bf16_products = false;  // See BackendCase.
  // Of each head's spans in turn, over and over.
  std::vector<CodecId> codecs = {CodecId::kRaw};
  std::string ToString() const {
    std::string text = absl::StrCat("heads ", heads, " group ", group, " dim ", dim, " rows ", rows,
                                    " tail_before ", tail_before, " ", DTypeName(dtype), " q ",
                                    q_size, " window ", window, " spans");
    for (const auto& head : spans) {
      absl::StrAppend(&text, " |");
      for (uint32_t span : head) absl::StrAppend(&text, " ", span);
    }
    return text;
  }
};

// Rows of a lossy codec, in the backend's memory.
struct CodedRows {
  Tensor codes;
  Tensor scales;
};

CodedRows MakeCodedRows(Backend& backend, CodecId id, const Floats& elements, int64_t dim) {
  const RowCodec& codec = *FindRowCodec(id);
  const auto width = static_cast<uint32_t>(dim);
  const size_t rows = elements.size() / width;
  std::string codes(rows * codec.code_bytes(width), '\0');
  std::string scales(rows * codec.scale_bytes(), '\0');
  KVTIER_EXPECT_OK(EncodeRows(codec, DType::kF32, AsBytes(Encode(elements, DType::kF32)).data(),
                              static_cast<uint32_t>(rows), width, AsMutableBytes(codes).data(),
                              AsMutableBytes(scales).data()));
  return {MakeBytes(backend, codes), MakeBytes(backend, scales)};
}

// The case's output on one backend; equal seeds give equal inputs.
Floats RunAttention(Backend& backend, const AttentionCase& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int64_t width = c.heads * c.group * c.dim;
  const int64_t tail_rows = c.tail_before + c.rows;
  const int64_t capacity = tail_rows + 3;  // Rows behind the tail must not be read.
  Floats queries = RandomFloats(random, c.rows * width, c.q_size);
  if (c.bf16_products && c.dtype == DType::kBf16) RoundToBf16(queries);
  const Tensor q = MakeActivations(backend, queries, c.rows, width);
  Floats tail_keys = RandomFloats(random, c.heads * capacity * c.dim);
  Floats tail_values = RandomFloats(random, c.heads * capacity * c.dim);
  for (int64_t h = 0; h < c.heads; ++h) {
    const auto behind = static_cast<int64_t>((h * capacity + tail_rows) * c.dim);
    std::fill_n(tail_keys.begin() + behind, 3 * c.dim, std::nanf(""));
    std::fill_n(tail_values.begin() + behind, 3 * c.dim, std::nanf(""));
  }
  const Layer tail = MakeLayer(backend, tail_keys, tail_values, c.dtype, c.heads, capacity, c.dim);
  std::vector<Tensor> memory;
  std::vector<CodedRows> coded;
  std::vector<std::vector<RowSpan>> spans(static_cast<size_t>(c.heads));
  for (size_t h = 0; h < c.spans.size(); ++h) {
    for (uint32_t rows : c.spans[h]) {
      RowSpan span{.rows = rows, .codec = c.codecs[spans[h].size() % c.codecs.size()]};
      for (const bool of_keys : {true, false}) {
        const Floats elements = RandomFloats(random, rows * c.dim);
        const std::byte* scales = nullptr;
        const std::byte* bytes = nullptr;
        if (span.codec == CodecId::kRaw) {
          memory.push_back(MakeTensor(backend, elements, c.dtype, rows, c.dim));
          bytes = static_cast<const std::byte*>(memory.back().data());
        } else {
          coded.push_back(MakeCodedRows(backend, span.codec, elements, c.dim));
          bytes = static_cast<const std::byte*>(coded.back().codes.data());
          scales = static_cast<const std::byte*>(coded.back().scales.data());
        }
        (of_keys ? span.keys : span.values) = bytes;
        (of_keys ? span.key_scales : span.value_scales) = scales;
      }
      spans[h].push_back(span);
    }
  }
  HeadSpans views(spans.begin(), spans.end());
  auto out = backend.Allocate(backend.activation_dtype(), c.rows, width);
  KVTIER_EXPECT_OK(out);
  KVTIER_EXPECT_OK(backend.Attention({.q = q,
                                      .spans = c.spans.empty() ? nullptr : &views,
                                      .span_dtype = c.dtype,
                                      .tail = tail.view,
                                      .tail_rows = tail_rows,
                                      .scale = 1 / std::sqrt(static_cast<float>(c.dim)),
                                      .window = c.window,
                                      .out = *out}));
  return Read(backend, *out);
}

// fp32 logits are off by about 2^-22 of the largest; so are the weights, and the sum of values of
// size 1. 16-bit activations round the output itself.
double AttentionTolerance(const Backend& backend, const AttentionCase& c) {
  const double largest_logit = c.q_size * std::sqrt(static_cast<double>(c.dim));
  double sums = 5e-7 * (4 + largest_logit);
  // A weight rounded to bf16 is off by 2^-9 of itself, the weighted mean of values of size 1 by
  // no more.
  if (c.bf16_products && c.dtype == DType::kBf16) sums += 0x1p-9;
  if (backend.activation_dtype() == DType::kBf16) return sums + 1e-2;
  return backend.activation_dtype() == DType::kF16 ? sums + 2e-3 : sums;
}

TEST_P(BackendConformanceTest, AttentionEqualsTheReferenceOverShapes) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  const std::vector<std::vector<std::vector<uint32_t>>> layouts = {
      {},                                  // no spans at all
      {{}, {}},                            // heads without a span
      {{1}, {}},                           // one row in one head
      {{3, 64, 17}, {130, 1}},             // several, uneven between heads
      {{0, 5, 0}, {63, 65, 64, 1, 200}}};  // empty spans; edges of a tile
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBf16};
  const int64_t tails[] = {0, 5, 70};
  size_t index = 0;
  for (int64_t group : {1, 2, 3, 8}) {
    for (int64_t dim : {32, 64, 128}) {
      for (int64_t rows : {1, 2, 7, 64}) {
        for (int repeat = 0; repeat < 3; ++repeat, ++index) {
          const AttentionCase c{.heads = 2,
                                .group = group,
                                .dim = dim,
                                .rows = rows,
                                .spans = layouts[index % layouts.size()],
                                .tail_before = tails[index / 5 % 3],
                                .dtype = dtypes[(index / 2 + repeat) % 3],
                                .q_size = index % 7 == 0 ? 60.0f : 2.0f,
                                .bf16_products = GetParam().bf16_products};
          SCOPED_TRACE(c.ToString());
          ExpectNear(RunAttention(*backend_, c, seed + index),
                     RunAttention(*reference_, c, seed + index), AttentionTolerance(*backend_, c),
                     1e-5);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Sizes that no vector divides, and a decode step long enough to be cut into parts.
TEST_P(BackendConformanceTest, AttentionHandlesOddSizes) {
  for (AttentionCase c :
       {AttentionCase{.dim = 20, .rows = 3, .spans = {{7}, {9, 2}}, .tail_before = 1},
        AttentionCase{.group = 2, .dim = 6, .rows = 65, .spans = {}, .tail_before = 2},
        AttentionCase{
            .group = 4, .dim = 64, .rows = 1, .spans = {{6000}, {100}}, .dtype = DType::kBf16},
        AttentionCase{
            .group = 2, .dim = 31, .rows = 150, .spans = {{129}, {7, 300}}, .dtype = DType::kBf16},
        AttentionCase{
            .group = 7, .dim = 64, .rows = 1, .spans = {{3000}, {100}}, .dtype = DType::kBf16},
        AttentionCase{.group = 2, .dim = 32, .rows = 5, .spans = {{2048, 2048}, {2047, 1, 1}}}}) {
    c.bf16_products = GetParam().bf16_products;
    SCOPED_TRACE(c.ToString());
    ExpectNear(RunAttention(*backend_, c, 5), RunAttention(*reference_, c, 5),
               AttentionTolerance(*backend_, c), 1e-5);
  }
}

// Windows smaller than a tile of keys, across spans and tail, of one row, and wider than
// everything; a long decode step whose first parts see nothing.
TEST_P(BackendConformanceTest, AttentionSeesNoFurtherBackThanItsWindow) {
  for (AttentionCase c :
       {AttentionCase{.rows = 200, .tail_before = 70, .window = 1},
        AttentionCase{.group = 2, .rows = 150, .tail_before = 3, .window = 37},
        AttentionCase{.dim = 20, .rows = 9, .spans = {{70, 30}, {5}}, .window = 12},
        AttentionCase{.group = 4, .rows = 1, .spans = {{6000}, {100}}, .window = 150},
        AttentionCase{.group = 8, .rows = 3, .spans = {{64}, {65}}, .tail_before = 8, .window = 64},
        AttentionCase{.rows = 80, .spans = {{300}, {}}, .window = 1000},
        AttentionCase{.rows = 130,
        .spans = {{129}, {1}},
        .dtype = DType::kBf16,
        .q_size = 10,
        .window = 128}}) {
    c.bf16_products = GetParam().bf16_products;
    SCOPED_TRACE(c.ToString());
    const Floats mine = RunAttention(*backend_, c, 6);
    ExpectNear(mine, RunAttention(*reference_, c, 6), AttentionTolerance(*backend_, c), 1e-5);
    // The window matters, or is as wide as everything.
    AttentionCase open = c;
    open.window = 0;
    EXPECT_EQ(mine == RunAttention(*backend_, open, 6), c.window == 1000);
  }
}

// The reference itself: a window over rows is the same as leaving out the rows before it.
TEST_P(BackendConformanceTest, AttentionWindowOfADecodeStepEqualsTheRowsInIt) {
  std::mt19937_64 random(TestSeed());
  const int64_t dim = 64;
  const Floats q = RandomFloats(random, dim);
  const Floats keys = RandomFloats(random, 10 * dim);
  const Floats values = RandomFloats(random, 10 * dim);
  const auto attend = [&](int64_t first, int64_t window) {
    const Tensor query = MakeActivations(*backend_, q, 1, dim);
    const Layer tail = MakeLayer(*backend_, Floats(keys.begin() + first * dim, keys.end()),
                                 Floats(values.begin() + first * dim, values.end()), DType::kF32, 1,
                                 10 - first, dim);
    auto out = backend_->Allocate(backend_->activation_dtype(), 1, dim);
    KVTIER_EXPECT_OK(out);
    KVTIER_EXPECT_OK(backend_->Attention({.q = query,
                                          .span_dtype = DType::kF32,
                                          .tail = tail.view,
                                          .tail_rows = 10 - first,
                                          .scale = 1,
                                          .window = window,
                                          .out = *out}));
    return Read(*backend_, *out);
  };
  ExpectNear(attend(0, 4), attend(6, 0), 1e-6, 1e-6);
}

// Codecs mixed with each other and with a raw tail: a few queries (decoding) read codes directly,
// many go through tiles; dims that direct reading does not take; windows; a decode step in parts.
TEST_P(BackendConformanceTest, AttentionReadsRowsOfEveryCodec) {
  const std::vector<std::vector<CodecId>> mixes = {
      {CodecId::kInt8},
      {CodecId::kInt4},
      {CodecId::kInt4, CodecId::kRaw, CodecId::kInt8},
  };
  uint64_t seed = 40;
  for (const std::vector<CodecId>& codecs : mixes) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (AttentionCase c :
           {AttentionCase{.group = 1, .dim = 64, .rows = 1, .spans = {{1}, {130, 5}}},
            AttentionCase{.group = 4, .dim = 128, .rows = 1, .spans = {{300, 64, 7}, {2, 0, 129}}},
            AttentionCase{.group = 3, .dim = 32, .rows = 1, .spans = {{63, 65, 64}, {}}},
            AttentionCase{.group = 4, .dim = 64, .rows = 1, .spans = {{6000}, {100, 1, 2}}},
            AttentionCase{.group = 2, .dim = 256, .rows = 2, .spans = {{200}, {17, 19, 23}}},
            AttentionCase{.group = 2, .dim = 64, .rows = 40, .spans = {{300, 150}, {5, 64, 1}}},
            AttentionCase{.group = 2, .dim = 48, .rows = 1, .spans = {{70, 3}, {9, 2}}},
            AttentionCase{.group = 1, .dim = 7, .rows = 3, .spans = {{70, 3}, {9, 2, 1}}}}) {
        c.dtype = dtype;
        c.tail_before = 6;
        c.q_size = 2;
        c.codecs = codecs;
        SCOPED_TRACE(c.ToString());
        // Rows decoded into bf16 are rounded once more than the reference's.
        c.bf16_products = GetParam().bf16_products;
        const double rounding = c.bf16_products && dtype == DType::kBf16 ? 1e-2 : 0;
        ++seed;
        ExpectNear(RunAttention(*backend_, c, seed), RunAttention(*reference_, c, seed),
                   AttentionTolerance(*backend_, c) + rounding, 1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(BackendConformanceTest, AttentionRepeatsBitByBit) {
  for (AttentionCase c :
       {AttentionCase{.group = 4, .rows = 1, .spans = {{6000}, {100}}, .dtype = DType::kBf16},
        AttentionCase{.group = 2, .rows = 70, .spans = {{129}, {7, 300}}, .tail_before = 9}}) {
    SCOPED_TRACE(c.ToString());
    const Floats first = RunAttention(*backend_, c, 8);
    for (int run = 0; run < 3; ++run) EXPECT_EQ(RunAttention(*backend_, c, 8), first);
  }
}

TEST_P(BackendConformanceTest, AttentionOfOneRowIsItsValue) {
  // The only visible row: softmax is 1, whatever the logit.
  const AttentionCase c{.heads = 2, .group = 2, .dim = 64, .rows = 1, .q_size = 1000};
  std::mt19937_64 random(3);
  RandomFloats(random, c.rows * c.heads * c.group * c.dim, c.q_size);
  RandomFloats(random, c.heads * 4 * c.dim);
  const Floats values = RandomFloats(random, c.heads * 4 * c.dim);
  const Floats out = RunAttention(*backend_, c, 3);
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t d = 0; d < 64; ++d) {
      ASSERT_NEAR(out[static_cast<size_t>(head * 64 + d)],
                  values[static_cast<size_t>(head / 2 * 4 * 64 + d)], 1e-2);
    }
  }
}

}  // namespace
}  // namespace kvtier
