#include "compressor/head_scores.h"

#include <limits>
#include <map>
#include <string>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/safetensors.h"
#include "compressor/safetensors_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

HeadScores Example() {
  HeadScores scores;
  scores.layers = 2;
  scores.kv_heads = 2;
  scores.log_scores = {-1, -2, -3, 0.5f};
  scores.model_digest = ComputeSha256(AsBytes("model"));
  return scores;
}

TEST(HeadScoresTest, AreTheBestTokensAndMergeByMaximum) {
  const ScoreTable table = {1, 2, 3, {-5, -1, -3, -2, -4, -6}};
  HeadScores scores = HeadScores::FromTable(table, Digest());
  EXPECT_THAT(scores.log_scores, ElementsAre(-1, -2));
  scores.Merge(HeadScores::FromTable({1, 2, 1, {-3, 0}}, Digest()));
  EXPECT_THAT(scores.log_scores, ElementsAre(-1, 0));
}

TEST(HeadScoresTest, ReadsWhatItWroteAndNamesTheFileByItsDigest) {
  TempDir dir;
  const std::string path = dir.File("heads.safetensors");
  KVTIER_ASSERT_OK(SaveHeadScores(path, Example(), {{"contexts", "2"}}));
  KVTIER_ASSERT_OK_AND_ASSIGN(const HeadScores read, LoadHeadScores(path));
  EXPECT_EQ(read.layers, 2u);
  EXPECT_EQ(read.kv_heads, 2u);
  EXPECT_EQ(read.log_scores, Example().log_scores);
  EXPECT_EQ(read.model_digest, Example().model_digest);
  EXPECT_EQ(read.file_digest, ComputeSha256(AsBytes(ReadFile(path))));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(path));
  EXPECT_EQ(file->metadata().at("contexts"), "2");
}

TEST(HeadScoresTest, RefusesFilesThatHoldNoHeadScores) {
  TempDir dir;
  const std::string path = dir.File("heads.safetensors");
  EXPECT_THAT(LoadHeadScores(path), StatusIs(absl::StatusCode::kNotFound, HasSubstr(path)));
  const std::map<std::string, std::string> good = {{"format", "kvtier-head-scores/1"},
                                                   {"model_digest", std::string(64, 'a')}};
  const std::string four(16, '\0');
  const SafetensorsEntry scores = {.dtype = "F32", .shape = {2, 2}, .bytes = AsBytes(four)};
  const auto refused = [&](const std::map<std::string, SafetensorsEntry>& entries,
                           const std::map<std::string, std::string>& metadata,
                           const char* message) {
    KVTIER_ASSERT_OK(WriteSafetensors(path, entries, metadata));
    EXPECT_THAT(LoadHeadScores(path), StatusIs(kInvalid, HasSubstr(message)));
  };
  refused({{"head_log_scores", scores}}, {}, "metadata \"format\"");
  refused({{"head_log_scores", scores}}, {{"format", "kvtier-head-scores/1"}}, "model_digest");
  refused({{"head_log_scores", scores}}, {{"format", good.at("format")}, {"model_digest", "abc"}},
          "model_digest");
  refused({{"scores", scores}}, good, "no tensor head_log_scores");
  refused({{"head_log_scores", {.dtype = "F32", .shape = {4}, .bytes = AsBytes(four)}}}, good,
          "F32 matrix");
  refused({{"head_log_scores", {.dtype = "I32", .shape = {2, 2}, .bytes = AsBytes(four)}}}, good,
          "F32 matrix");
  HeadScores nan = Example();
  nan.log_scores[3] = std::numeric_limits<float>::quiet_NaN();
  KVTIER_ASSERT_OK(SaveHeadScores(path, nan, {}));
  EXPECT_THAT(LoadHeadScores(path), StatusIs(kInvalid, HasSubstr("layer 1, head 1 is nan")));
}

TEST(HeadScoresTest, FitOneModelOnly) {
  const TestModel tiny = MakeTestModel();
  const Geometry geometry = tiny.model->config().MakeGeometry(DType::kBf16);
  HeadScores scores = Example();
  EXPECT_THAT(scores.CheckFits(*tiny.model, geometry),
              StatusIs(kInvalid, HasSubstr(scores.model_digest.ToHex())));
  scores.model_digest = tiny.model->digest();
  KVTIER_EXPECT_OK(scores.CheckFits(*tiny.model, geometry));
  scores.layers = 1;
  scores.kv_heads = 4;
  EXPECT_THAT(scores.CheckFits(*tiny.model, geometry),
              StatusIs(kInvalid, HasSubstr("[1, 4], model")));
}

}  // namespace
}  // namespace kvtier
