// What bf16 weights, products and caches cost on the fixture model, beside what they cost
// transformers (tests/golden/README.md, "bf16 arithmetic").
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/cancel_token.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/forward.h"
#include "compressor/ranking.h"
#include "compressor/safetensors.h"
#include "compressor/scoring.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"
#include "tests/unit/compressor/golden_tensors.h"

namespace kvtier {
namespace {

// Ours against transformers in bf16 with its default attention.
constexpr double kErrorRatioMax = 1.25;
constexpr double kOverlapMin = 0.98;
constexpr int32_t kMillionths = 300'000;

double Rms(const std::vector<float>& got, const float* want) {
  double squares = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    squares += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
  }
  return std::sqrt(squares / static_cast<double>(got.size()));
}

class Bf16GoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KVTIER_ASSERT_OK_AND_ASSIGN(golden_,
                                SafetensorsFile::Open(SourcePath("tests/golden/bf16.safetensors")));
    KVTIER_ASSERT_OK_AND_ASSIGN(
        scores_,
        SafetensorsFile::Open(SourcePath("tests/golden/scores/definition_fixture.safetensors")));
    backend_ = MakeCpuBackend({.threads = 2});
    KVTIER_ASSERT_OK_AND_ASSIGN(model_, Model::Load(SourcePath("tests/fixtures/model"), *backend_));
    ids_ = GoldenTensor<uint32_t>(*golden_, "ids");
    KVTIER_ASSERT_OK_AND_ASSIGN(
        DenseCache cache, DenseCache::Create(*backend_, model_->config().MakeGeometry(DType::kBf16),
                                             static_cast<int64_t>(ids_.size())));
    cache_ = std::make_unique<DenseCache>(std::move(cache));
    KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch,
                                ForwardScratch::Create(*model_, static_cast<int64_t>(ids_.size())));
    KVTIER_ASSERT_OK(Forward(*model_, ids_, {.tail = cache_.get()}, scratch, {}, &logits_));
    scratch_ = std::make_unique<ForwardScratch>(std::move(scratch));
  }
  std::unique_ptr<SafetensorsFile> golden_, scores_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::vector<uint32_t> ids_;
  std::unique_ptr<DenseCache> cache_;
  std::unique_ptr<ForwardScratch> scratch_;
  std::vector<float> logits_;
};

TEST_F(Bf16GoldenTest, LogitsKeysAndValuesAreAsCloseToFp32AsThoseOfTransformers) {
  const size_t vocabulary = static_cast<size_t>(model_->config().vocabulary);
  std::vector<float> logits;
  for (uint32_t row : GoldenTensor<uint32_t>(*golden_, "logit_positions")) {
    const auto begin = logits_.begin() + static_cast<long>(row * vocabulary);
    logits.insert(logits.end(), begin, begin + static_cast<long>(vocabulary));
  }
  const double ours = Rms(logits, GoldenTensor<float>(*golden_, "logits").data());
  const double theirs = GoldenTensor<double>(*golden_, "sdpa.rms.logits")[0];
  std::cout << "rms error of logits " << ours << ", transformers " << theirs << "\n";
  EXPECT_LE(ours, kErrorRatioMax * theirs);

  const std::vector<uint32_t> positions = GoldenTensor<uint32_t>(*golden_, "cache_positions");
  const std::vector<float> keys = GoldenTensor<float>(*golden_, "keys");
  const std::vector<float> values = GoldenTensor<float>(*golden_, "values");
  const std::vector<double> keys_theirs = GoldenTensor<double>(*golden_, "sdpa.rms.keys");
  const std::vector<double> values_theirs = GoldenTensor<double>(*golden_, "sdpa.rms.values");
  const size_t head_floats = positions.size() * static_cast<size_t>(model_->config().head_dim);
  size_t at = 0;
  for (int64_t layer = 0; layer < model_->config().layers; ++layer) {
    std::vector<float> got_keys, got_values;
    for (int64_t head = 0; head < model_->config().kv_heads; ++head) {
      std::vector<bfloat16> k(head_floats);
      std::vector<bfloat16> v(head_floats);
      KVTIER_ASSERT_OK(backend_->GatherRows(cache_->layer(layer), head, positions,
                                            AsMutableBytes(std::span(k)).data(),
                                            AsMutableBytes(std::span(v)).data()));
      for (bfloat16 x : k) got_keys.push_back(static_cast<float>(x));
      for (bfloat16 x : v) got_values.push_back(static_cast<float>(x));
    }
    const size_t index = static_cast<size_t>(layer);
    EXPECT_LE(Rms(got_keys, keys.data() + at), kErrorRatioMax * keys_theirs[index]) << layer;
    EXPECT_LE(Rms(got_values, values.data() + at), kErrorRatioMax * values_theirs[index]) << layer;
    at += got_keys.size();
  }
  ASSERT_EQ(at, keys.size());
}

TEST_F(Bf16GoldenTest, KeepsWhatFp32Keeps) {
  const std::vector<uint32_t> context = GoldenTensor<uint32_t>(*scores_, "context");
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ScoreTable table,
      ReadScores(ScoreContext(*model_, context, static_cast<int64_t>(ids_.size() - context.size()),
                              *cache_, *scratch_, CancelToken(), nullptr)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment bands, AssignBands(table, BandEdges::Default(),
                                                                      /*first_token_first=*/false));
  const std::vector<int32_t> ratios = GoldenTensor<int32_t>(*scores_, "millionths");
  const size_t ratio =
      static_cast<size_t>(std::find(ratios.begin(), ratios.end(), kMillionths) - ratios.begin());
  ASSERT_LT(ratio, ratios.size());
  const std::vector<uint8_t> kept = GoldenTensor<uint8_t>(*scores_, "kvzip.kept");
  const size_t pairs = bands.band.size();
  ASSERT_EQ(kept.size(), pairs * ratios.size());
  size_t both = 0;
  size_t either = 0;
  size_t ours = 0;
  for (size_t i = 0; i < pairs; ++i) {
    const bool mine = bands.band[i] <= 2;  // The cache at 0.3: bands 0 to 2.
    const bool theirs = kept[ratio * pairs + i] != 0;
    ours += mine ? 1 : 0;
    both += mine && theirs ? 1 : 0;
    either += mine || theirs ? 1 : 0;
  }
  ASSERT_EQ(ours, pairs * 3 / 10);
  const double overlap = static_cast<double>(both) / static_cast<double>(either);
  std::cout << "kept at 0.3 by both, over kept by either: " << overlap << "\n";
  EXPECT_GE(overlap, kOverlapMin);
}

}  // namespace
}  // namespace kvtier
