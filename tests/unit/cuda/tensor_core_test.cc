// The emulation of tensor cores against matrix products, and the kernels on them against the plain
// ones: same inputs, other order of sums.
#include "cuda/tensor_core.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "cuda/math/order_key.h"
#include "cuda/score.h"
#include "cuda/score_tensor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

std::vector<bfloat16> RandomHalves(std::mt19937_64& random, int64_t count) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<bfloat16> values(count);
  for (bfloat16& value : values) value = bfloat16(uniform(random));
  return values;
}

struct ProductParams {
  const bfloat16* a = nullptr;  // [16, 16]
  const bfloat16* b = nullptr;  // [16, 8], row-major
  float* d = nullptr;           // [16, 8]
  bool transposed_load = false;
};

// Fragments as MultiplyAdd's comment says, element by element; or b by LoadTransposed.
KVTIER_KERNEL void ProductKernel(ProductParams p) {
  const int lane = ThreadIndex();
  const int r = lane / 4;
  const int c = lane % 4 * 2;
  const auto word = [](bfloat16 lower, bfloat16 upper) {
    return uint32_t{lower.bits} | uint32_t{upper.bits} << 16;
  };
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) {
    const bfloat16* row = p.a + (r + i % 2 * 8) * 16 + c + i / 2 * 8;
    a[i] = word(row[0], row[1]);
  }
  uint32_t b[2];
  for (int i = 0; i < 2; ++i) {
    b[i] = word(p.b[(c + i * 8) * 8 + r], p.b[(c + i * 8 + 1) * 8 + r]);
  }
  if (p.transposed_load) {
    uint32_t four[4];  // Both matrices twice.
    LoadTransposed(four, p.b + (lane % 16) * 8);
    b[0] = four[0];
    b[1] = four[1];
  }
  float d[4] = {1, 1, 1, 1};
  MultiplyAdd(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(r + i / 2 * 8) * 8 + c + i % 2] = d[i];
}

TEST(TensorCoreTest, MultipliesSmallMatrices) {
  std::mt19937_64 random(TestSeed());
  for (const bool transposed_load : {false, true}) {
    const std::vector<bfloat16> a = RandomHalves(random, 16 * 16);
    const std::vector<bfloat16> b = RandomHalves(random, 16 * 8);
    std::vector<float> d(16 * 8);
    ASSERT_EQ(LaunchKernel(ProductKernel, {}, 32, 0, nullptr,
                           ProductParams{a.data(), b.data(), d.data(), transposed_load}),
              0);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        double sum = 1;
        for (int k = 0; k < 16; ++k) {
          sum += double{static_cast<float>(a[i * 16 + k])} * static_cast<float>(b[k * 8 + j]);
        }
        ASSERT_NEAR(d[i * 8 + j], sum, 1e-5);
      }
    }
  }
}

KVTIER_KERNEL void TransposedLoadKernel(ProductParams p) {
  uint32_t four[4];
  LoadTransposed(four, p.b + ThreadIndex() % 16 * 8);
  p.d[ThreadIndex()] = static_cast<float>(four[0] + four[1] + four[2] + four[3]);
}

TEST(TensorCoreTest, ATransposedLoadOfRowsThatAreNotAlignedEndsTheLaunch) {
  alignas(16) bfloat16 b[17 * 8] = {};
  float d[32];
  EXPECT_EQ(LaunchKernel(TransposedLoadKernel, {}, 32, 0, nullptr, {.b = b, .d = d}), 0);
  EXPECT_EQ(LaunchKernel(TransposedLoadKernel, {}, 32, 0, nullptr, {.b = b + 4, .d = d}),
            host_simt::kAlignmentError);
  EXPECT_THAT(host_simt::LastError(), ::testing::HasSubstr("8 past a multiple of 16"));
}

TEST(TensorCoreTest, MaximaKeepNan) {
  EXPECT_EQ(MaxOrNan(1, 2), 2);
  EXPECT_EQ(MaxOrNan(2, 1), 2);
  EXPECT_TRUE(std::isnan(MaxOrNan(std::nanf(""), 1)));
  EXPECT_TRUE(std::isnan(MaxOrNan(1, std::nanf(""))));
}

struct ScoreShape {
  int64_t dim, group, query_rows, columns;
  bool row_offsets = false;
  bool nan = false;
};

std::vector<float> Scores(const ScoreShape& s, bool tensor, int64_t parts) {
  std::mt19937_64 random(7);
  const int64_t heads = 2;
  const int64_t capacity = s.columns + 9;
  std::vector<bfloat16> q = RandomHalves(random, s.query_rows * heads * s.group * s.dim);
  if (s.nan) q[3] = bfloat16(std::numeric_limits<float>::quiet_NaN());
  const std::vector<bfloat16> keys = RandomHalves(random, heads * capacity * s.dim);
  std::uniform_real_distribution<float> uniform(-3, 9);
  std::vector<float> lse(heads * s.query_rows * s.group);
  for (float& value : lse) value = uniform(random);
  std::vector<float> offsets(s.query_rows);
  for (float& value : offsets) value = uniform(random);
  std::vector<uint32_t> best(heads * s.columns, kOrderKeyOfNothing);
  const ScoreMaxParams params{.q = q.data(),
                              .q_type = Element::kBf16,
                              .keys = keys.data(),
                              .key_type = Element::kBf16,
                              .capacity = capacity,
                              .chunk_begin = 5,
                              .columns = s.columns,
                              .query_rows = s.query_rows,
                              .group = s.group,
                              .kv_heads = heads,
                              .head_dim = s.dim,
                              .scale = 0.11f,
                              .lse = lse.data(),
                              .row_offsets = s.row_offsets ? offsets.data() : nullptr,
                              .parts = parts,
                              .best = best.data()};
  EXPECT_TRUE(ScoreTensorFits(params));
  EXPECT_EQ(tensor ? LaunchScoreTensor(params, nullptr) : LaunchScoreMax(params, nullptr), 0);
  std::vector<float> scores(best.size());
  for (size_t i = 0; i < best.size(); ++i) scores[i] = ValueOfOrderKey(best[i]);
  return scores;
}

TEST(ScoreTensorTest, EqualsThePlainKernel) {
  for (const ScoreShape& s :
       {ScoreShape{64, 1, 1, 1}, ScoreShape{64, 4, 40, 300}, ScoreShape{96, 3, 43, 129, true},
        ScoreShape{128, 5, 26, 128, true}, ScoreShape{256, 2, 33, 70}}) {
    SCOPED_TRACE(absl::StrCat("dim ", s.dim, " group ", s.group, " rows ", s.query_rows,
                              " columns ", s.columns));
    const std::vector<float> plain = Scores(s, /*tensor=*/false, 1);
    for (const int64_t parts : {1, 2, 5}) {
      const std::vector<float> tensor = Scores(s, /*tensor=*/true, parts);
      ASSERT_EQ(tensor.size(), plain.size());
      for (size_t i = 0; i < plain.size(); ++i) ASSERT_NEAR(tensor[i], plain[i], 2e-5) << i;
    }
  }
}

TEST(ScoreTensorTest, ANanReachesEveryKeyOfItsHead) {
  const ScoreShape s{.dim = 64, .group = 2, .query_rows = 9, .columns = 20, .nan = true};
  const std::vector<float> scores = Scores(s, /*tensor=*/true, 1);
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_TRUE(std::isnan(scores[i]));
    EXPECT_FALSE(std::isnan(scores[20 + i]));
  }
}

TEST(ScoreTensorTest, RefusesWhatItHasNoKernelFor) {
  EXPECT_EQ(LaunchScoreTensor({.q_type = Element::kBf16, .head_dim = 80}, nullptr),
            kInvalidConfiguration);
  EXPECT_EQ(LaunchScoreTensor({.q_type = Element::kF32, .head_dim = 128}, nullptr),
            kInvalidConfiguration);
}

}  // namespace
}  // namespace kvtier
