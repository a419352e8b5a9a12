#include "compressor/sampler.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(SamplerTest, GreedyTakesTheLowestIdAmongTheLargest) {
  EXPECT_EQ(Greedy(std::vector<float>{1, 3, 2, 3}), 1u);
  EXPECT_EQ(Greedy(std::vector<float>{-kInfinity, -kInfinity}), 0u);
  EXPECT_EQ(Greedy(std::vector<float>{kNan, -5, -4}), 2u);
  EXPECT_EQ(Greedy(std::vector<float>{kNan, kNan}), 0u);
  Sampler sampler(/*temperature=*/0, /*seed=*/1);
  EXPECT_EQ(sampler.Next(std::vector<float>{1, 3, 2, 3}), 1u);
}

TEST(SamplerTest, DrawsFromTheSoftmaxOfTheTemperature) {
  Sampler sampler(/*temperature=*/2, /*seed=*/7);
  // exp(x / 2) gives weights 1 : 2 : 5; the NaN weighs nothing.
  const std::vector<float> logits = {0, 2 * std::log(2.0f), kNan, 2 * std::log(5.0f)};
  int counts[4] = {};
  constexpr int kDraws = 80'000;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.Next(logits)];
  // Five standard deviations of a binomial count are below 5 * sqrt(kDraws / 4) = 707.
  EXPECT_NEAR(counts[0], kDraws / 8, 707);
  EXPECT_NEAR(counts[1], kDraws * 2 / 8, 707);
  EXPECT_EQ(counts[2], 0);
  EXPECT_NEAR(counts[3], kDraws * 5 / 8, 707);
}

TEST(SamplerTest, IsRepeatableForASeed) {
  Sampler a(1, 42), b(1, 42), c(1, 43);
  std::vector<uint32_t> of_a, of_b, of_c;
  const std::vector<float> logits(50, 0.0f);
  for (int i = 0; i < 40; ++i) {
    of_a.push_back(a.Next(logits));
    of_b.push_back(b.Next(logits));
    of_c.push_back(c.Next(logits));
  }
  EXPECT_EQ(of_a, of_b);
  EXPECT_NE(of_a, of_c);
}

TEST(SamplerTest, SurvivesInfiniteLogits) {
  Sampler sampler(1, 1);
  EXPECT_EQ(sampler.Next(std::vector<float>{0, kInfinity, 0}), 1u);
  EXPECT_EQ(sampler.Next(std::vector<float>{-kInfinity, -kInfinity}), 0u);
}

}  // namespace
}  // namespace kvtier
