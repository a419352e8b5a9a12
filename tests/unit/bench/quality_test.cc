// KVzip on the fixture model and a real document: the reason for this project, as a test. The same
// figures at full size come from kvtier-eval (docs/performance.md).
#include <filesystem>

#include "base/status_matchers.h"
#include "bench/evaluation.h"
#include "bench/questions.h"
#include "compressor/cpu_backend.h"
#include "compressor/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"

namespace kvtier {
namespace {

constexpr int kThreads = 2;

class QualityTest : public ::testing::Test {
 protected:
  static std::string Fixture(absl::string_view path) {
    return std::filesystem::path(SourcePath("tests/fixtures")) / std::string(path);
  }

  void SetUp() override {
    backend_ = MakeCpuBackend({.threads = kThreads});
    KVTIER_ASSERT_OK_AND_ASSIGN(model_, Model::Load(Fixture("model"), *backend_));
    // Enough for two scoring chunks, and for a sanitizer's pace.
    const std::string document = ReadFile(Fixture("documents/kettle.txt")).substr(0, 700);
    ASSERT_TRUE(model_->profile().byte_vocabulary.has_value());
    const ByteVocabulary bytes = *model_->profile().byte_vocabulary;
    context_ = bytes.Encode(document);
    KVTIER_ASSERT_OK_AND_ASSIGN(const QuestionSet set,
                                DrawQuestions("kettle.txt", document, bytes, 30, /*seed=*/1));
    questions_ = set.questions;
    KVTIER_ASSERT_OK_AND_ASSIGN(evaluation_, Evaluation::Create(*model_, context_));
  }

  uint32_t Exact(const ScoreTable& scores, double ratio) {
    const absl::StatusOr<CompressedObject> object = evaluation_->Pack(scores);
    KVTIER_CHECK_OK(object);
    const absl::StatusOr<ExactCount> count =
        evaluation_->CountExact(*object, *Ratio::FromDouble(ratio), questions_, kThreads, {});
    KVTIER_CHECK_OK(count);
    return count->exact;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::vector<uint32_t> context_;
  std::vector<Question> questions_;
  std::unique_ptr<Evaluation> evaluation_;
};

TEST_F(QualityTest, AtThirtyPercentKvzipLosesNothingAndTheOthersAlmostEverything) {
  std::vector<uint32_t> tokens = model_->profile().prefix;
  tokens.insert(tokens.end(), context_.begin(), context_.end());
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const uint32_t full,
      CountFull(Fixture("model"), model_->profile(), tokens, questions_, /*threads=*/1, nullptr));
  const auto total = static_cast<uint32_t>(questions_.size());
  EXPECT_GE(full, total * 95 / 100);

  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable kvzip, evaluation_->KvzipScores());
  EXPECT_GE(Exact(kvzip, 0.3) + 1, full);  // 2 % of 30 questions, rounded up.
  EXPECT_LE(Exact(evaluation_->RandomScores(/*seed=*/1), 0.3) + total * 20 / 100, full);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ScoreTable snapkv,
                              evaluation_->SnapKvScores(questions_[0].question_ids));
  EXPECT_LE(Exact(snapkv, 0.3) + total * 20 / 100, full);
}

}  // namespace
}  // namespace kvtier
