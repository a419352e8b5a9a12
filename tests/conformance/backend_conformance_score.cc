// Scores: shapes, variants of the softmax, numbers that are none.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

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
  const Tensor out = MakeTensor(backend, Floats(static_cast<size_t>(c.heads * stride), 7.0f),
                                DType::kF32, c.heads, stride);
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
                              .out = static_cast<float*>(out.data()),
                              .out_stride = stride,
                              .full_rows = c.full_rows,
                              .row_offsets = c.row_offsets ? row_offsets.data() : nullptr,
                              .key_offsets = c.key_offsets ? key_offsets.data() : nullptr,
                              .key_offset_stride = key_offset_stride}));
  return Read(backend, out);
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

TEST_P(BackendConformanceTest, ScoresRepeatBitByBit) {
  const ScoreCase c{.group = 3,
                    .q_rows = 150,
                    .sink_rows = 31,
                    .chunk_begin = 40,
                    .chunk_end = 440,
                    .capacity = 450,
                    .dtype = DType::kBf16,
                    .bf16_products = GetParam().bf16_products};
  const Floats first = RunScore(*backend_, c, 9);
  for (int run = 0; run < 3; ++run) EXPECT_EQ(RunScore(*backend_, c, 9), first);
}

TEST_P(BackendConformanceTest, ScoreShowsNanAndLeavesEmptyChunksAlone) {
  const Floats scores = RunScore(*backend_, {.nan_query = 2}, 1);
  EXPECT_TRUE(std::isnan(scores[0])) << "a NaN must reach the ranking, which refuses it";
  for (float untouched : RunScore(*backend_, {.chunk_begin = 4, .chunk_end = 4}, 1)) {
    EXPECT_EQ(untouched, 7.0f);
  }
}

}  // namespace
}  // namespace kvtier
