// Scores where a backend keeps them, against the host's table: what goes in comes out, what is
// filled in, what is looked at and what is named, bit for bit.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/backend_scores.h"
#include "gmock/gmock.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// Falling from -1 on, in steps that no two scores share.
ScoreTable Falling(uint32_t layers, uint32_t kv_heads, uint64_t tokens) {
  ScoreTable table = ScoreTable::Create(layers, kv_heads, tokens);
  for (uint64_t i = 0; i < table.pairs(); ++i) {
    table.log_scores[i] = -1 - static_cast<float>(i) / 1024;
  }
  return table;
}

TEST_P(BackendConformanceTest, ScoresComeOutAsTheyWentIn) {
  for (const uint64_t tokens : {0, 1, 31, 300}) {
    SCOPED_TRACE(tokens);
    ScoreTable table = Falling(3, 2, tokens);
    if (tokens > 4) {
      table.log_scores[1] = -0.0f;
      table.log_scores[2] = -kInfinity;
      table.log_scores[3] = kInfinity;
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto scores, PlaceScores(*backend_, table));
    EXPECT_EQ(scores->shape().pairs(), 6 * tokens);
    KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable read, scores->Read());
    EXPECT_EQ(read.layers, 3u);
    EXPECT_EQ(read.kv_heads, 2u);
    EXPECT_EQ(read.tokens, tokens);
    EXPECT_EQ(read.log_scores, table.log_scores);
    EXPECT_EQ(scores->host() != nullptr, backend_->host_addressable());
  }
}

TEST_P(BackendConformanceTest, ScoresOfAnotherShapeAreRefused) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto scores,
                              backend_->MakeScores({.layers = 2, .kv_heads = 2, .tokens = 5}));
  EXPECT_THAT(scores->Write(Falling(2, 2, 4)),
              StatusIs(kInvalid, HasSubstr("2 layers x 2 heads x 4 tokens for 2 x 2 x 5")));
  ScoreTable torn = Falling(2, 2, 5);
  torn.log_scores.pop_back();
  EXPECT_THAT(scores->Write(torn), StatusIs(kInvalid, HasSubstr("19 scores")));
  const std::vector<float> values(4, -1.0f);
  EXPECT_THAT(scores->Fill(0, 6, values), StatusIs(kInvalid, HasSubstr("[0, 6)")));
  EXPECT_THAT(scores->Fill(3, 2, values), StatusIs(kInvalid));
  EXPECT_THAT(scores->Fill(0, 5, std::span(values).first(3)),
              StatusIs(kInvalid, HasSubstr("3 values")));
}

TEST_P(BackendConformanceTest, FilledTokensHaveTheirRowsScore) {
  struct Range {
    uint64_t begin, end;
  };
  for (const auto& [begin, end] : {Range{0, 300}, {0, 1}, {299, 300}, {7, 129}, {5, 5}}) {
    SCOPED_TRACE(absl::StrCat("[", begin, ", ", end, ")"));
    ScoreTable expected = Falling(2, 3, 300);
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto scores, PlaceScores(*backend_, expected));
    std::vector<float> values = {0, -1, -2, -kInfinity, -0.0f, 3};
    KVTIER_ASSERT_OK(scores->Fill(begin, end, values));
    for (size_t row = 0; row < values.size(); ++row) {
      std::fill(expected.log_scores.begin() + static_cast<ptrdiff_t>(row * 300 + begin),
                expected.log_scores.begin() + static_cast<ptrdiff_t>(row * 300 + end), values[row]);
    }
    std::ranges::fill(values, 9.0f);  // The caller's again at once.
    KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable read, scores->Read());
    EXPECT_EQ(read.log_scores, expected.log_scores);
  }
}

TEST_P(BackendConformanceTest, TheFirstScoreThatIsNotFiniteIsNamed) {
  for (const float wrong : {kNan, -kNan, kInfinity, -kInfinity}) {
    for (const uint64_t first_token : {0, 4}) {
      SCOPED_TRACE(absl::StrCat(wrong, " from token ", first_token));
      ScoreTable table = Falling(2, 3, 200);
      // Those before it are not looked at, and later ones are not named.
      if (first_token > 0) table.at(0, 1, first_token - 1) = wrong;
      KVTIER_ASSERT_OK_AND_ASSIGN(auto scores, PlaceScores(*backend_, table));
      KVTIER_EXPECT_OK(CheckFinite(*scores, first_token));
      table.at(1, 2, 5) = wrong;
      table.at(1, 1, 150) = wrong;
      table.at(1, 1, 199) = kNan;
      KVTIER_ASSERT_OK(scores->Write(table));
      KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreVerdict verdict, scores->Inspect(first_token));
      EXPECT_EQ(verdict.not_finite, (3 + 1) * 200 + 150);
      EXPECT_EQ(CheckFinite(*scores, first_token).message(),
                absl::StrCat("score of layer 1, head 1, context token ", 150 - first_token, " is ",
                             verdict.not_finite_score));
      EXPECT_EQ(std::isnan(verdict.not_finite_score), std::isnan(wrong));
      if (!std::isnan(wrong)) {
        EXPECT_EQ(verdict.not_finite_score, wrong);
      }
      EXPECT_THAT(CheckFinite(*scores, first_token), StatusIs(kInvalid));
    }
  }
}

TEST_P(BackendConformanceTest, TheBestScoreIsFoundAmongTiesAndSigns) {
  struct Case {
    float fill, best;
  };
  for (const auto& [fill, best] : {Case{-5, -5}, {-5, 3}, {-1e-40f, -0.0f}, {-3e38f, -2e38f}}) {
    SCOPED_TRACE(absl::StrCat(fill, " ", best));
    ScoreTable table = ScoreTable::Create(2, 2, 333);
    std::ranges::fill(table.log_scores, fill);
    table.at(1, 0, 77) = best;
    table.at(0, 1, 332) = best;  // Twice.
    table.at(0, 0, 2) = 100;     // Before the first that is looked at.
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto scores, PlaceScores(*backend_, table));
    KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreVerdict verdict, scores->Inspect(3));
    EXPECT_EQ(verdict.not_finite, std::nullopt);
    EXPECT_EQ(verdict.best, best);
    KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreVerdict none, scores->Inspect(333));
    EXPECT_EQ(none.not_finite, std::nullopt);
    EXPECT_EQ(none.best, -kInfinity);
  }
}

// Chunk by chunk, as the scoring pass: each writes its own columns of its layer and nothing else.
TEST_P(BackendConformanceTest, ChunksAreScoredIntoTheirPlaces) {
  const int64_t heads = 2;
  const int64_t group = 2;
  const int64_t dim = 64;
  const int64_t rows = 6;
  const int64_t context = 40;
  const auto run = [&](Backend& backend) {
    std::mt19937_64 random(TestSeed());
    const int64_t width = heads * group * dim;
    Floats queries = RandomFloats(random, rows * width);
    if (GetParam().bf16_products) RoundToBf16(queries);
    const Tensor q = MakeActivations(backend, queries, rows, width);
    const Floats keys = RandomFloats(random, heads * context * dim);
    const Layer cache = MakeLayer(backend, keys, keys, DType::kF32, heads, context, dim);
    const Floats own = RandomFloats(random, heads * rows * dim);
    const Layer repeat = MakeLayer(backend, own, own, DType::kF32, heads, rows, dim);
    // Three tokens before the context's.
    std::unique_ptr<BackendScores> scores =
        backend.MakeScores({.layers = 3, .kv_heads = 2, .tokens = 3 + context}).value();
    KVTIER_EXPECT_OK(scores->Fill(0, 3 + context, std::vector<float>(6, 7.0f)));
    for (const int64_t begin : {0, 15, 30}) {
      const int64_t end = std::min(context, begin + 15);
      KVTIER_EXPECT_OK(backend.ScoreColumnMax({.q = q,
                                               .cache = cache.view,
                                               .chunk_begin = begin,
                                               .chunk_end = end,
                                               .repeat = repeat.view,
                                               .scale = 0.125f,
                                               .out = scores->From(1, 3 + begin),
                                               .out_stride = 3 + context}));
    }
    KVTIER_EXPECT_OK(CheckFinite(*scores, 3));
    return scores->Read().value();
  };
  const ScoreTable mine = run(*backend_);
  const ScoreTable expected = run(*reference_);
  ExpectNear(mine.log_scores, expected.log_scores, 4e-5, 1e-6);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint64_t token = 0; token < mine.tokens; ++token) {
        const bool scored = layer == 1 && token >= 3;
        ASSERT_EQ(mine.at(layer, head, token) == 7.0f, !scored)
            << "layer " << layer << ", head " << head << ", token " << token;
      }
    }
  }
  EXPECT_EQ(run(*backend_).log_scores, mine.log_scores);
}

}  // namespace
}  // namespace kvtier
