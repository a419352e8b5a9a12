#include "tests/conformance/backend_conformance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "kvcache/row_codec.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using Floats = std::vector<float>;

Floats RandomFloats(std::mt19937_64& random, int64_t count, float size = 1) {
  std::uniform_real_distribution<float> uniform(-size, size);
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

std::string Encode(const Floats& values, DType dtype) {
  std::string bytes;
  ByteWriter writer(&bytes);
  for (float value : values) {
    if (dtype == DType::kF32) writer.WriteF32(value);
    if (dtype == DType::kF16) writer.WriteU16(float16(value).bits);
    if (dtype == DType::kBf16) writer.WriteU16(bfloat16(value).bits);
  }
  return bytes;
}

Tensor MakeTensor(Backend& backend, const Floats& values, DType dtype, int64_t rows, int64_t cols) {
  auto tensor = backend.Allocate(dtype, rows, cols);
  KVTIER_EXPECT_OK(tensor);
  KVTIER_EXPECT_OK(backend.Upload(AsBytes(Encode(values, dtype)), *tensor));
  return *std::move(tensor);
}
// What a factor of a bf16 product becomes.
void RoundToBf16(Floats& values) {
  for (float& value : values) value = static_cast<float>(bfloat16(value));
}

// Of the backend's activation dtype.
Tensor MakeActivations(Backend& backend, const Floats& values, int64_t rows, int64_t cols) {
  return MakeTensor(backend, values, backend.activation_dtype(), rows, cols);
}

Floats Read(Backend& backend, const Tensor& tensor) {
  std::string bytes(tensor.bytes(), '\0');
  KVTIER_EXPECT_OK(backend.Download(tensor, AsMutableBytes(bytes)));
  ByteReader reader(AsBytes(bytes));
  Floats values;
  for (int64_t i = 0; i < tensor.rows() * tensor.cols(); ++i) {
    if (tensor.dtype() == DType::kF32) values.push_back(*reader.ReadF32());
    if (tensor.dtype() == DType::kF16) {
      values.push_back(static_cast<float>(float16::FromBits(*reader.ReadU16())));
    }
    if (tensor.dtype() == DType::kBf16) {
      values.push_back(static_cast<float>(bfloat16::FromBits(*reader.ReadU16())));
    }
  }
  return values;
}

// |a - b| <= absolute + relative * |b|, NaN nowhere.
void ExpectNear(const Floats& a, const Floats& b, double absolute, double relative) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_LE(std::abs(double{a[i]} - b[i]), absolute + relative * std::abs(b[i]))
        << "at " << i << ": " << a[i] << ", reference " << b[i];
  }
}

// Keys and values of one layer on one backend.
struct Layer {
  Tensor keys;
  Tensor values;
  KvLayerView view;
};
Layer MakeLayer(Backend& backend, const Floats& keys, const Floats& values, DType dtype,
                int64_t heads, int64_t capacity, int64_t dim) {
  Layer layer{.keys = MakeTensor(backend, keys, dtype, heads * capacity, dim),
              .values = MakeTensor(backend, values, dtype, heads * capacity, dim),
              .view = {}};
  layer.view = {.keys = layer.keys.data(),
                .values = layer.values.data(),
                .dtype = dtype,
                .kv_heads = heads,
                .capacity = capacity,
                .head_dim = dim};
  return layer;
}

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

// Rows of a lossy codec; `scales` points to theirs, behind the codes.
std::vector<std::byte> EncodeFloats(CodecId id, const Floats& elements, int64_t dim,
                                    std::byte*& scales) {
  const RowCodec& codec = *FindRowCodec(id);
  const auto width = static_cast<uint32_t>(dim);
  const size_t rows = elements.size() / width;
  std::vector<std::byte> bytes(rows * (codec.code_bytes(width) + codec.scale_bytes()));
  scales = bytes.data() + rows * codec.code_bytes(width);
  KVTIER_EXPECT_OK(EncodeRows(codec, DType::kF32,
                              reinterpret_cast<const std::byte*>(elements.data()),
                              static_cast<uint32_t>(rows), width, bytes.data(), scales));
  return bytes;
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
  std::vector<std::vector<std::byte>> coded;  // Host memory.
  std::vector<std::vector<RowSpan>> spans(static_cast<size_t>(c.heads));
  for (size_t h = 0; h < c.spans.size(); ++h) {
    for (uint32_t rows : c.spans[h]) {
      RowSpan span{.rows = rows, .codec = c.codecs[spans[h].size() % c.codecs.size()]};
      for (const bool of_keys : {true, false}) {
        const Floats elements = RandomFloats(random, rows * c.dim);
        std::byte* scales = nullptr;
        const std::byte* bytes = nullptr;
        if (span.codec == CodecId::kRaw) {
          memory.push_back(MakeTensor(backend, elements, c.dtype, rows, c.dim));
          bytes = static_cast<const std::byte*>(memory.back().data());
        } else {
          coded.push_back(EncodeFloats(span.codec, elements, c.dim, scales));
          bytes = coded.back().data();
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
  if (!backend_->host_addressable()) GTEST_SKIP() << "device kernels list their head dims";
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
  if (!backend_->host_addressable()) GTEST_SKIP() << "device kernels list their head dims";
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
  if (!backend_->host_addressable()) GTEST_SKIP() << "coded rows of this test lie in host memory";
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

struct ScoreCase {
  int64_t heads = 2;
  int64_t group = 2;
  int64_t dim = 64;
  int64_t q_rows = 5;
  int64_t sink_rows = 2;
  int64_t chunk_begin = 2;
  int64_t chunk_end = 5;
  int64_t capacity = 8;
  DType dtype = DType::kF32;
  float q_size = 1;
  int64_t nan_query = -1;      // A query row that is NaN.
  bool bf16_products = false;  // See BackendCase.
  int64_t full_rows = 0;
  bool row_offsets = false;
  bool key_offsets = false;
};

Floats RunScore(Backend& backend, const ScoreCase& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int64_t width = c.heads * c.group * c.dim;
  Floats queries = RandomFloats(random, c.q_rows * width, c.q_size);
  if (c.bf16_products && c.dtype == DType::kBf16) RoundToBf16(queries);
  if (c.nan_query >= 0) {
    std::fill_n(queries.begin() + c.nan_query * width, width,
                std::numeric_limits<float>::quiet_NaN());
  }
  const Tensor q = MakeActivations(backend, queries, c.q_rows, width);
  const Floats keys = RandomFloats(random, c.heads * c.capacity * c.dim);
  const Layer cache = MakeLayer(backend, keys, keys, c.dtype, c.heads, c.capacity, c.dim);
  const int64_t repeat_capacity = c.q_rows + 2;
  const Floats own = RandomFloats(random, c.heads * repeat_capacity * c.dim);
  const Layer repeat = MakeLayer(backend, own, own, c.dtype, c.heads, repeat_capacity, c.dim);
  const int64_t columns = c.chunk_end - c.chunk_begin;
  const int64_t stride = columns + 4;
  Floats out(static_cast<size_t>(c.heads * stride), 7.0f);
  // Large enough that scores exceed 0 and that the largest weight does not decide alone.
  const Floats row_offsets = RandomFloats(random, c.q_rows, 12);
  const int64_t key_offset_stride = columns + 3;
  const Floats key_offsets = RandomFloats(random, c.heads * c.group * key_offset_stride, 12);
  KVTIER_EXPECT_OK(
      backend.ScoreColumnMax({.q = q,
                              .cache = cache.view,
                              .sink_rows = c.sink_rows,
                              .chunk_begin = c.chunk_begin,
                              .chunk_end = c.chunk_end,
                              .repeat = repeat.view,
                              .scale = 1 / std::sqrt(static_cast<float>(c.dim)),
                              .out = out.data(),
                              .out_stride = stride,
                              .full_rows = c.full_rows,
                              .row_offsets = c.row_offsets ? row_offsets.data() : nullptr,
                              .key_offsets = c.key_offsets ? key_offsets.data() : nullptr,
                              .key_offset_stride = key_offset_stride}));
  KVTIER_EXPECT_OK(backend.Synchronize());
  return out;
}

TEST_P(BackendConformanceTest, ScoreColumnMaxEqualsTheReference) {
  const ScoreCase cases[] = {
      {},
      {.sink_rows = 0, .chunk_begin = 0},                                           // no sinks
      {.group = 1, .q_rows = 1, .sink_rows = 0, .chunk_begin = 3, .chunk_end = 4},  // one column
      {.group = 3,
       .dim = 32,
       .q_rows = 66,
       .sink_rows = 60,
       .chunk_begin = 70,
       .chunk_end = 134,
       .capacity = 134,
       .dtype = DType::kBf16},
      {.group = 8,
       .dim = 128,
       .q_rows = 40,
       .sink_rows = 1,
       .chunk_begin = 1,
       .chunk_end = 130,
       .capacity = 140,
       .dtype = DType::kF16},
      {.group = 2,
       .dim = 64,
       .q_rows = 129,
       .sink_rows = 64,
       .chunk_begin = 65,
       .chunk_end = 128,
       .capacity = 200,
       .q_size = 40},
      {.group = 7,  // Several tiles of queries and of keys, in several parts.
       .dim = 64,
       .q_rows = 150,
       .sink_rows = 131,
       .chunk_begin = 140,
       .chunk_end = 440,
       .capacity = 450,
       .dtype = DType::kBf16},
  };
  for (ScoreCase c : cases) {
    c.bf16_products = GetParam().bf16_products;
    SCOPED_TRACE(absl::StrCat("group ", c.group, " dim ", c.dim, " q_rows ", c.q_rows, " chunk [",
                              c.chunk_begin, ", ", c.chunk_end, ")"));
    const Floats mine = RunScore(*backend_, c, 11);
    // A log score is a difference of logits of size q_size * sqrt(dim) and a sum of exponentials.
    ExpectNear(mine, RunScore(*reference_, c, 11), 2e-6 * (4 + c.q_size * 12), 1e-6);
    const int64_t stride = c.chunk_end - c.chunk_begin + 4;
    for (int64_t h = 0; h < c.heads; ++h) {
      for (int64_t j = 0; j < stride; ++j) {
        const float score = mine[static_cast<size_t>(h * stride + j)];
        if (j < stride - 4) {
          ASSERT_LE(score, 0.0f);
        } else {
          ASSERT_EQ(score, 7.0f) << "written past the chunk";
        }
      }
    }
  }
}

TEST_P(BackendConformanceTest, ScoreVariantsEqualTheReference) {
  const ScoreCase shapes[] = {
      {},
      {.sink_rows = 0, .chunk_begin = 0, .chunk_end = 8},
      {.group = 3,
       .dim = 32,
       .q_rows = 66,
       .sink_rows = 60,
       .chunk_begin = 70,
       .chunk_end = 140,
       .capacity = 200,
       .dtype = DType::kBf16},
      {.group = 1,
       .dim = 96,
       .q_rows = 67,
       .sink_rows = 4,
       .chunk_begin = 65,
       .chunk_end = 66,
       .capacity = 131,
       .dtype = DType::kF16},
  };
  Floats largest(8, -std::numeric_limits<float>::infinity());  // Of each variant, over all shapes.
  for (ScoreCase shape : shapes) {
    shape.bf16_products = GetParam().bf16_products;
    const Floats plain = RunScore(*reference_, shape, 5);
    for (int variant = 1; variant < 8; ++variant) {
      ScoreCase c = shape;
      c.full_rows = (variant & 1) != 0 ? c.capacity - 1 : 0;
      if (c.full_rows != 0 && c.full_rows < c.chunk_end) c.full_rows = c.capacity;
      c.row_offsets = (variant & 2) != 0;
      c.key_offsets = (variant & 4) != 0;
      SCOPED_TRACE(absl::StrCat("variant ", variant, " dim ", c.dim));
      const Floats mine = RunScore(*backend_, c, 5);
      ExpectNear(mine, RunScore(*reference_, c, 5), 4e-5, 1e-6);
      const int64_t columns = c.chunk_end - c.chunk_begin;
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t j = 0; j < columns; ++j) {
          const size_t at = static_cast<size_t>(h * (columns + 4) + j);
          largest[variant] = std::max(largest[variant], mine[at]);
          // A larger denominator gives no larger score.
          if (variant == 1) {
            ASSERT_LE(mine[at], plain[at] + 4e-5f);
          }
        }
      }
    }
  }
  EXPECT_LE(largest[1], 0.0f);
  for (int variant = 2; variant < 8; ++variant) {
    EXPECT_GT(largest[variant], 0.0f) << "clamped, though offsets are given: " << variant;
  }
}

TEST_P(BackendConformanceTest, ScoreShowsNanAndLeavesEmptyChunksAlone) {
  const Floats scores = RunScore(*backend_, {.nan_query = 2}, 1);
  EXPECT_TRUE(std::isnan(scores[0])) << "a NaN must reach the ranking, which refuses it";
  for (float untouched : RunScore(*backend_, {.chunk_begin = 4, .chunk_end = 4}, 1)) {
    EXPECT_EQ(untouched, 7.0f);
  }
}

TEST_P(BackendConformanceTest, LinearEqualsTheReference) {
  std::mt19937_64 random(TestSeed());
  const int64_t shapes[][2] = {{1, 1}, {5, 3}, {64, 256}, {264, 32}, {1000, 72}, {130, 4096}};
  for (const auto& shape : shapes) {
    const int64_t out = shape[0];
    const int64_t in = shape[1];
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      const std::string weights = Encode(RandomFloats(random, out * in), dtype);
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto mine,
                                  backend_->PrepareLinear(AsBytes(weights), dtype, out, in));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto theirs,
                                  reference_->PrepareLinear(AsBytes(weights), dtype, out, in));
      EXPECT_EQ(mine->in_features(), in);
      EXPECT_EQ(mine->out_features(), out);
      const bool halves = GetParam().bf16_products && dtype == DType::kBf16;
      EXPECT_GE(mine->bytes(), static_cast<uint64_t>(in * out) * (halves ? 2 : 1));
      for (int64_t rows : {1, 8, 171}) {  // 171 = 128 + 32 + 8 + 3: every block of rows
        SCOPED_TRACE(absl::StrCat("[", rows, ", ", in, "] x [", out, "] ", DTypeName(dtype)));
        Floats x = RandomFloats(random, rows * in);
        if (GetParam().bf16_products && dtype == DType::kBf16) {
          RoundToBf16(x);
        }
        const auto run = [&](Backend& backend, const LinearWeights& w) {
          const Tensor from = MakeActivations(backend, x, rows, in);
          auto to = backend.Allocate(backend.activation_dtype(), rows, out);
          KVTIER_EXPECT_OK(to);
          KVTIER_EXPECT_OK(backend.Linear(from, w, *to));
          return Read(backend, *to);
        };
        ExpectNear(run(*backend_, *mine), run(*reference_, *theirs),
                   1e-6 * std::sqrt(static_cast<double>(in)), 1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// In fp32 whatever the table's dtype, so that products are compared as they are.
TEST_P(BackendConformanceTest, LinearOverASharedTableEqualsTheReference) {
  std::mt19937_64 random(TestSeed());
  for (const auto& [out, in] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {5, 3}, {260, 256}, {64, 72}, {700, 128}}) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
      const Floats values = RandomFloats(random, out * in);
      for (int64_t rows : {1, 4, 7}) {
        SCOPED_TRACE(absl::StrCat("[", rows, ", ", in, "] x [", out, "] ", DTypeName(dtype)));
        const Floats x = RandomFloats(random, rows * in);
        const auto run = [&, out_ = out, in_ = in](Backend& backend) {
          const Tensor table = MakeTensor(backend, values, dtype, out_, in_);
          const auto weights = backend.ShareLinear(table);
          KVTIER_EXPECT_OK(weights);
          EXPECT_EQ((*weights)->out_features(), out_);
          const Tensor from = MakeActivations(backend, x, rows, in_);
          auto to = backend.Allocate(backend.activation_dtype(), rows, out_);
          KVTIER_EXPECT_OK(to);
          KVTIER_EXPECT_OK(backend.Linear(from, **weights, *to));
          return Read(backend, *to);
        };
        ExpectNear(run(*backend_), run(*reference_), 1e-6 * std::sqrt(static_cast<double>(in)),
                   1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(BackendConformanceTest, ElementwiseOperationsEqualTheReference) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 8}, {3, 40}, {2, 64}, {70, 256}, {513, 72}}) {
    std::mt19937_64 random(TestSeed() + static_cast<uint64_t>(rows));
    Floats a = RandomFloats(random, rows * cols, 3);
    const Floats b = RandomFloats(random, rows * cols, 3);
    a[0] = 90;  // Outliers: exp of them overflows and underflows.
    a[1] = -90;
    a[2] = 1e-30f;
    const Floats weight = RandomFloats(random, cols);
    struct Results {
      Floats norm, norm_in_place, sum, biased, silu, gelu;
    };
    const auto run = [&, rows_ = rows, cols_ = cols](Backend& backend) {
      Results results;
      const Tensor x = MakeActivations(backend, a, rows_, cols_);
      const Tensor y = MakeActivations(backend, b, rows_, cols_);
      const Tensor w = MakeTensor(backend, weight, DType::kF32, 1, cols_);
      auto out = backend.Allocate(backend.activation_dtype(), rows_, cols_);
      KVTIER_EXPECT_OK(out);
      KVTIER_EXPECT_OK(backend.RmsNorm(x, w, 1e-5f, *out));
      results.norm = Read(backend, *out);
      KVTIER_EXPECT_OK(backend.GateMul(Activation::kSilu, x, y, *out));
      results.silu = Read(backend, *out);
      KVTIER_EXPECT_OK(backend.GateMul(Activation::kGeluTanh, x, y, *out));
      results.gelu = Read(backend, *out);
      KVTIER_EXPECT_OK(backend.AddInPlace(x, y));
      results.sum = Read(backend, x);
      KVTIER_EXPECT_OK(backend.AddInPlace(x, TensorView(y).Rows(rows_ - 1, 1)));
      results.biased = Read(backend, x);
      KVTIER_EXPECT_OK(backend.RmsNorm(x, w, 1e-5f, x));
      results.norm_in_place = Read(backend, x);
      return results;
    };
    const Results mine = run(*backend_);
    const Results theirs = run(*reference_);
    ExpectNear(mine.norm, theirs.norm, 1e-6, 2e-6);
    ExpectNear(mine.silu, theirs.silu, 1e-6, 2e-6);
    ExpectNear(mine.gelu, theirs.gelu, 1e-6, 4e-6);
    ExpectNear(mine.sum, theirs.sum, 0, 0);
    ExpectNear(mine.biased, theirs.biased, 0, 0);
    ExpectNear(mine.norm_in_place, theirs.norm_in_place, 1e-6, 2e-6);
  }
}

TEST_P(BackendConformanceTest, RopeEqualsTheReferenceAndKeepsLengths) {
  std::mt19937_64 random(TestSeed());
  for (int64_t dim : {2, 64, 128}) {
    RopeTable table{.inverse_frequencies = {}, .attention_scaling = 1.0f};
    for (int64_t d = 0; d < dim; d += 2) {
      table.inverse_frequencies.push_back(
          1.0f / std::pow(10000.0f, static_cast<float>(d) / static_cast<float>(dim)));
    }
    const int64_t heads = 3;
    const int64_t rows = 37;
    const Floats x = RandomFloats(random, rows * heads * dim);
    const auto run = [&](Backend& backend) {
      const Tensor tensor = MakeActivations(backend, x, rows, heads * dim);
      KVTIER_EXPECT_OK(backend.Rope(tensor, heads, table, 12345));
      return Read(backend, tensor);
    };
    const Floats mine = run(*backend_);
    ExpectNear(mine, run(*reference_), 2e-6, 0);
    for (size_t i = 0; i < mine.size(); i += static_cast<size_t>(dim)) {
      double before = 0;
      double after = 0;
      for (size_t d = i; d < i + static_cast<size_t>(dim); ++d) {
        before += double{x[d]} * x[d];
        after += double{mine[d]} * mine[d];
      }
      ASSERT_NEAR(before, after, 1e-5 * (1 + before));
    }
  }
}

TEST_P(BackendConformanceTest, EmbedCopiesRowsOfAnyDtype) {
  std::mt19937_64 random(TestSeed());
  const std::vector<uint32_t> ids{3, 0, 9, 3};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    const Floats values = RandomFloats(random, 10 * 40);
    float scale = 1;
    const auto run = [&](Backend& backend) {
      const Tensor table = MakeTensor(backend, values, dtype, 10, 40);
      auto out = backend.Allocate(backend.activation_dtype(), 4, 40);
      KVTIER_EXPECT_OK(out);
      KVTIER_EXPECT_OK(backend.Embed(ids, table, scale, *out));
      return Read(backend, *out);
    };
    ExpectNear(run(*backend_), run(*reference_), 0, 0);
    scale = 1.75f;
    ExpectNear(run(*backend_), run(*reference_), 0, 0);
  }
  const Tensor table = MakeTensor(*backend_, Floats(40), DType::kF32, 1, 40);
  KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor out,
                              backend_->Allocate(backend_->activation_dtype(), 1, 40));
  const std::vector<uint32_t> unknown{1};
  EXPECT_THAT(backend_->Embed(unknown, table, 1, out),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

// AppendKv rounds to nearest even and touches its rows only; GatherRows gives the same bytes back.
TEST_P(BackendConformanceTest, AppendAndGatherAreExact) {
  std::mt19937_64 random(TestSeed());
  const int64_t heads = 3;
  const int64_t dim = 64;
  const int64_t capacity = 10;
  const int64_t rows = 4;
  const int64_t at = 5;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    Floats k = RandomFloats(random, rows * heads * dim);
    const Floats v = RandomFloats(random, rows * heads * dim);
    k[0] = 1.0f + 0x1p-8f;      // A tie of bf16: to even, 1.
    k[1] = 1.0f + 3 * 0x1p-8f;  // To even, 1 + 2^-6.
    k[2] = 1e-6f;               // A subnormal half.
    const Floats zeros(static_cast<size_t>(heads * capacity * dim), 0.25f);
    const Layer layer = MakeLayer(*backend_, zeros, zeros, dtype, heads, capacity, dim);
    const Tensor k_rows = MakeActivations(*backend_, k, rows, heads * dim);
    const Tensor v_rows = MakeActivations(*backend_, v, rows, heads * dim);
    KVTIER_ASSERT_OK(backend_->AppendKv(k_rows, v_rows, layer.view, at));
    const Floats k_seen = Read(*backend_, k_rows);
    const Floats v_seen = Read(*backend_, v_rows);
    const std::vector<uint32_t> positions{8, 4, 5};
    const size_t row_bytes = static_cast<size_t>(dim) * DTypeBytes(dtype);
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<std::byte> keys(3 * row_bytes);
      std::vector<std::byte> values(3 * row_bytes);
      KVTIER_ASSERT_OK(backend_->GatherRows(layer.view, h, positions, keys.data(), values.data()));
      const auto expected = [&](const Floats& from, int64_t row) {
        const auto begin = from.begin() + (row * heads + h) * dim;
        return Encode(Floats(begin, begin + dim), dtype);
      };
      const auto untouched = Encode(Floats(static_cast<size_t>(dim), 0.25f), dtype);
      EXPECT_EQ(ToString(ByteSpan(keys)), expected(k_seen, 3) + untouched + expected(k_seen, 0));
      EXPECT_EQ(ToString(ByteSpan(values)), expected(v_seen, 3) + untouched + expected(v_seen, 0));
    }
  }
}

TEST_P(BackendConformanceTest, RefusesShapesThatDoNotFit) {
  const auto bad = StatusIs(absl::StatusCode::kInvalidArgument);
  const Floats zeros(2 * 8 * 64);
  const Layer layer = MakeLayer(*backend_, zeros, zeros, DType::kBf16, 2, 8, 64);
  const Tensor q = MakeActivations(*backend_, Floats(3 * 256), 3, 256);
  const Tensor out = MakeActivations(*backend_, Floats(3 * 256), 3, 256);
  const AttentionArgs good{.q = q,
                           .span_dtype = DType::kBf16,
                           .tail = layer.view,
                           .tail_rows = 3,
                           .scale = 0.125f,
                           .out = out};
  KVTIER_EXPECT_OK(backend_->Attention(good));
  AttentionArgs args = good;
  args.tail_rows = 2;
  EXPECT_THAT(backend_->Attention(args), bad) << "fewer tail rows than queries";
  args = good;
  args.tail_rows = 9;
  EXPECT_THAT(backend_->Attention(args), bad) << "past the capacity";
  args = good;
  args.span_dtype = DType::kF32;
  EXPECT_THAT(backend_->Attention(args), bad) << "dtypes differ";
  args = good;
  args.window = -1;
  EXPECT_THAT(backend_->Attention(args), bad) << "a negative window";
  const HeadSpans one_head(1);
  args = good;
  args.spans = &one_head;
  EXPECT_THAT(backend_->Attention(args), bad) << "spans of one head, tail of two";
  args = good;
  args.tail.head_dim = 48;
  EXPECT_THAT(backend_->Attention(args), bad) << "256 columns are no multiple of 2 * 48";

  EXPECT_THAT(backend_->AppendKv(q, q, layer.view, 0), bad);
  EXPECT_THAT(backend_->AddInPlace(q, TensorView(out).Rows(0, 2)), bad);
  const std::string weights(256 * 2, '\0');
  EXPECT_THAT(backend_->PrepareLinear(AsBytes(weights), DType::kBf16, 2, 256), bad);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto linear,
                              backend_->PrepareLinear(AsBytes(weights), DType::kBf16, 1, 256));
  EXPECT_THAT(backend_->Linear(q, *linear, out), bad);
  const std::vector<uint32_t> position{8};
  std::vector<std::byte> row(128);
  EXPECT_THAT(backend_->GatherRows(layer.view, 0, position, row.data(), row.data()), bad);
  std::vector<float> scores(8);
  ScoreArgs score{.q = q,
                  .cache = layer.view,
                  .sink_rows = 2,
                  .chunk_begin = 1,
                  .chunk_end = 5,
                  .repeat = layer.view,
                  .scale = 1,
                  .out = scores.data(),
                  .out_stride = 4};
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "sinks inside the chunk";
  score.sink_rows = 0;
  score.full_rows = 4;
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "the softmax leaves the chunk out";
  score.full_rows = layer.view.capacity + 1;
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "more rows than the cache has";
  score.full_rows = 0;
  score.key_offsets = scores.data();
  score.key_offset_stride = 3;
  EXPECT_THAT(backend_->ScoreColumnMax(score), bad) << "offsets of three columns, four are scored";
  EXPECT_THAT(backend_->Allocate(DType::kF32, -1, 4), bad);
}

}  // namespace

void BackendConformanceTest::SetUp() {
  backend_ = GetParam().make();
  if (backend_ == nullptr) GTEST_SKIP() << "this machine cannot run " << GetParam().name;
  reference_ = MakeReferenceBackend();
}

}  // namespace kvtier
