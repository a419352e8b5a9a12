// The merge of two attentions against sums in double.
#include "cuda/merge_attention.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "base/half.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

struct alignas(16) Elements {
  bfloat16 of[8];
};

class MergeAttentionTest : public ::testing::Test {
 protected:
  // rows x heads x dim random elements, normalisers up to `spread` apart.
  void Make(int64_t rows, int64_t heads, int64_t dim, float spread) {
    std::mt19937_64 random(TestSeed());
    std::uniform_real_distribution<float> element(-2, 2);
    std::uniform_real_distribution<float> normaliser(-spread, spread);
    params_ = {.rows = rows, .heads = heads, .head_dim = dim};
    part_.resize(rows * heads * dim / 8);
    out_.resize(part_.size());
    for (size_t i = 0; i < part_.size(); ++i) {
      for (bfloat16& x : part_[i].of) x = bfloat16(element(random));
      for (bfloat16& x : out_[i].of) x = bfloat16(element(random));
    }
    part_lse_.resize(rows * heads);
    out_lse_.resize(rows * heads);
    for (float& x : part_lse_) x = normaliser(random);
    for (float& x : out_lse_) x = normaliser(random);
  }

  static double At(const std::vector<Elements>& elements, int64_t i) {
    return static_cast<float>(elements[i / 8].of[i % 8]);
  }

  void Run() {
    params_.part = part_.data();
    params_.part_lse = part_lse_.data();
    params_.out = out_.data();
    params_.out_lse = out_lse_.data();
    ASSERT_EQ(LaunchMergeAttention(params_, nullptr), 0);
  }

  void ExpectMerges() {
    const std::vector<Elements> before = out_;
    Run();
    const auto& [rows, heads, dim] = std::tie(params_.rows, params_.heads, params_.head_dim);
    for (int64_t i = 0; i < rows * heads * dim; ++i) {
      const int64_t lse = i / dim % heads * rows + i / dim / heads;
      const double a = std::exp(static_cast<double>(part_lse_[lse]) - out_lse_[lse]);
      const double expected = (a * At(part_, i) + At(before, i)) / (a + 1);
      ASSERT_NEAR(At(out_, i), expected, std::abs(expected) * 0x1p-8 + 1e-6) << "element " << i;
    }
  }

  MergeAttentionParams params_;
  std::vector<Elements> part_, out_;
  std::vector<float> part_lse_, out_lse_;
};

TEST_F(MergeAttentionTest, IsTheWeightedSumOfBoth) {
  Make(/*rows=*/37, /*heads=*/6, /*dim=*/72, /*spread=*/3);
  ExpectMerges();
  Make(/*rows=*/1, /*heads=*/1, /*dim=*/8, /*spread=*/1);
  ExpectMerges();
}

TEST_F(MergeAttentionTest, NormalisersFarApartLeaveOneOfBoth) {
  Make(/*rows=*/5, /*heads=*/2, /*dim=*/16, /*spread=*/500);
  ExpectMerges();
  // Sets without keys, whose outputs do not count.
  Make(/*rows=*/2, /*heads=*/1, /*dim=*/8, /*spread=*/1);
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  part_lse_[0] = kNone;
  out_lse_[1] = kNone;
  const std::vector<Elements> before = out_;
  Run();
  for (int64_t d = 0; d < 8; ++d) {
    EXPECT_EQ(At(out_, d), At(before, d));
    EXPECT_EQ(At(out_, 8 + d), At(part_, 8 + d));
  }
}

TEST_F(MergeAttentionTest, TakesMoreElementsThanItHasThreads) {
  Make(/*rows=*/4100, /*heads=*/8, /*dim=*/264, /*spread=*/2);
  ExpectMerges();
}

TEST_F(MergeAttentionTest, NoRowsAreNoWork) {
  Make(/*rows=*/0, /*heads=*/8, /*dim=*/64, /*spread=*/2);
  Run();
}

}  // namespace
}  // namespace kvtier
