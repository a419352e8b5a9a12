// The plain product where its grid ends: more rows than blocks, more outputs than a grid's second
// axis has blocks. Values are the conformance suite's.
#include "cuda/plain_gemm.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

// y[row, out] = x[row] * weights[out], in numbers that fp32 holds.
void ExpectOuterProduct(int64_t rows, int64_t out) {
  std::vector<float> x(rows);
  std::vector<float> weights(out);
  for (int64_t i = 0; i < rows; ++i) x[i] = static_cast<float>(i % 1021);
  for (int64_t i = 0; i < out; ++i) weights[i] = static_cast<float>(i % 1019 + 1);
  std::vector<float> y(rows * out, -1);
  ASSERT_EQ(LaunchPlainGemm({.x = x.data(),
                             .weights = weights.data(),
                             .y = y.data(),
                             .rows = rows,
                             .out = out,
                             .in = 1},
                            nullptr),
            0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < out; ++i) {
      ASSERT_EQ(y[row * out + i], x[row] * weights[i]) << "row " << row << " output " << i;
    }
  }
}

TEST(PlainGemmTest, TakesMoreRowsThanItHasBlocks) {
  ExpectOuterProduct(/*rows=*/4096 * 16 + 16 + 1, /*out=*/1);
}

TEST(PlainGemmTest, TakesMoreOutputsThanASecondAxisHasBlocks) {
  ExpectOuterProduct(/*rows=*/1, /*out=*/65536 * 16 + 1);
}

}  // namespace
}  // namespace kvtier
