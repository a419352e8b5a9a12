#include "compressor/dense_reference.h"

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/forward.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {
namespace {

class DenseReferenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KVTIER_ASSERT_OK_AND_ASSIGN(folder_, WriteTinyModel({}, dir_.File("model")));
    std::mt19937_64 random(TestSeed());
    for (int i = 0; i < 200; ++i) ids_.push_back(static_cast<uint32_t>(random() % 264));
  }
  std::unique_ptr<DenseReferenceDecoder> MakeDecoder(DType dtype) {
    auto decoder = DenseReferenceDecoder::Create(folder_, dtype);
    KVTIER_EXPECT_OK(decoder);
    return *std::move(decoder);
  }

  TempDir dir_;
  std::string folder_;
  std::vector<uint32_t> ids_;
};

// Two code paths, one model: the backend's forward pass over a dense cache of the same dtype.
TEST_F(DenseReferenceTest, AgreesWithTheForwardPass) {
  const auto backend = MakeCpuBackend({.threads = 2, .compute = CpuCompute::kF32});
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto model, Model::Load(folder_, *backend));
  KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*model, 200));
  for (DType dtype : {DType::kF32, DType::kF16}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        DenseCache cache, DenseCache::Create(*backend, model->config().MakeGeometry(dtype), 200));
    std::vector<float> expected;
    KVTIER_ASSERT_OK(Forward(*model, ids_, {.tail = &cache}, scratch, {}, &expected));
    const auto decoder = MakeDecoder(dtype);
    KVTIER_ASSERT_OK(decoder->Prefill(std::span(ids_).first(150)));
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> logits,
                                decoder->Logits(std::span(ids_).subspan(150)));
    // A key or value that lies between two halves may be rounded the other way: 2^-11 of its size.
    const double tolerance = dtype == DType::kF32 ? 2e-4 : 2e-2;
    ASSERT_EQ(logits.size(), 50u * 264);
    for (size_t i = 0; i < logits.size(); ++i) {
      ASSERT_NEAR(logits[i], expected[150 * 264 + i], tolerance) << i << " " << DTypeName(dtype);
    }
  }
}

TEST_F(DenseReferenceTest, AnswersDoNotDependOnEarlierQuestions) {
  const auto decoder = MakeDecoder(DType::kBf16);
  KVTIER_ASSERT_OK(decoder->Prefill(std::span(ids_).first(150)));
  const std::span<const uint32_t> a = std::span(ids_).subspan(150, 5);
  const std::span<const uint32_t> b = std::span(ids_).subspan(160, 9);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> first, decoder->Answer(a, 8));
  KVTIER_ASSERT_OK(decoder->Answer(b, 12));
  EXPECT_THAT(decoder->Answer(a, 8), IsOkAndHolds(first));
  EXPECT_EQ(first.size(), 8u);
  EXPECT_EQ(decoder->context_length(), 150);
}

TEST_F(DenseReferenceTest, AnswerIsTheGreedyContinuation) {
  const auto decoder = MakeDecoder(DType::kBf16);
  KVTIER_ASSERT_OK(decoder->Prefill(std::span(ids_).first(50)));
  std::vector<uint32_t> tokens(ids_.begin() + 50, ids_.begin() + 55);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> answer, decoder->Answer(tokens, 6));
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> logits, decoder->Logits(tokens));
  for (size_t i = 0; i < answer.size(); ++i) {
    const auto row = logits.begin() + static_cast<int64_t>((4 + i) * 264);
    EXPECT_EQ(std::max_element(row, row + 264) - row, answer[i]) << "token " << i;
  }
  // A stop id ends the answer and belongs to it.
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const std::vector<uint32_t> stopped,
      decoder->Answer(std::span(tokens).first(5), 6, std::span(answer).subspan(2, 1)));
  ASSERT_LE(stopped.size(), 3u);
  EXPECT_EQ(stopped.back(), answer[2]);
}

TEST_F(DenseReferenceTest, RefusesWhatTheModelCannotRead) {
  const auto decoder = MakeDecoder(DType::kBf16);
  const std::vector<uint32_t> unknown{1, 264};
  EXPECT_THAT(decoder->Prefill(unknown), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(decoder->Prefill(std::vector<uint32_t>(4097, 1)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(decoder->Answer({}, 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DenseReferenceDecoder::Create(dir_.File("nowhere"), DType::kBf16),
              StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace kvtier
