// The memory promises of packing and pipeline where some layers slide: their rows are known before
// anything runs, so the estimate of their segments is exact.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/packing.h"
#include "compressor/pipeline.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

// Layers 0 and 2 of three slide, by a window of 9; the prefix has 3 tokens.
const std::string kFolder = SourcePath("tests/golden/families/gemma3_text");
constexpr uint64_t kPrefix = 3;
constexpr uint64_t kWindow = 9;

class SlidingEstimateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto counting = std::make_unique<CountingBackend>(MakeReferenceBackend());
    counting_ = counting.get();
    backend_ = std::move(counting);
    KVTIER_ASSERT_OK_AND_ASSIGN(model_, Model::Load(kFolder, *backend_));
    ASSERT_EQ(model_->config().window, int64_t{kWindow});
    ASSERT_EQ(model_->profile().prefix.size(), kPrefix);
  }
  std::vector<uint32_t> Context(uint64_t tokens) const {
    return RandomTokens(tokens, /*seed=*/3, static_cast<uint32_t>(model_->config().vocabulary));
  }

  CountingBackend* counting_ = nullptr;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
};

TEST_F(SlidingEstimateTest, SegmentsOfSlidingLayersTakeWhatTheEstimateSays) {
  for (uint64_t tokens : {1, 5, 6, 7, 100}) {  // With the prefix below, at and above the window.
    const CompressedObject object = CompressForTest(*model_, Context(tokens));
    const Manifest& manifest = *object.manifest;
    Geometry sliding = manifest.geometry;
    std::erase(sliding.layers, LayerKind::kGlobal);
    ASSERT_EQ(sliding.layer_count(), 2u);
    uint64_t bytes = 0;
    for (size_t band = 0; band < manifest.bands.size(); ++band) {
      for (size_t layer = 0; layer < manifest.geometry.layers.size(); ++layer) {
        if (manifest.geometry.layers[layer] == LayerKind::kGlobal) continue;
        bytes += object.segments[band * manifest.geometry.layers.size() + layer].bytes().size();
        for (const HeadEntry& head : manifest.bands[band].layers[layer].heads) {
          EXPECT_EQ(head.rows, band == 0 ? std::min(tokens + kPrefix, kWindow) : 0);
        }
      }
    }
    EXPECT_EQ(
        EstimatePackedBytes(sliding, kPrefix, tokens, BandEdges::Default(), CodecId::kRaw, kWindow),
        bytes)
        << tokens << " tokens";
    EXPECT_GE(EstimatePackedBytes(sliding, kPrefix, tokens, BandEdges::Default()), bytes)
        << "without a window every row is kept";
  }
}

TEST_F(SlidingEstimateTest, PipelineEstimateIsWithinTenPercent) {
  for (uint64_t tokens : {60, 400}) {
    const Pipeline pipeline(*model_, {.kv_dtype = DType::kF32, .prefill_rows = 32});
    const std::vector<uint32_t> context = Context(tokens);
    CompressInput input;
    input.context = context;
    const uint64_t before = counting_->live_bytes();
    counting_->ResetPeak();
    uint64_t while_packing = 0;
    const auto progress = [&](const CompressProgress& p) {
      if (p.stage == CompressStage::kPack) while_packing = counting_->live_bytes() - before;
    };
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                                pipeline.Compress(input, progress, CancelToken()));
    const uint64_t pairs = object.manifest->scored_pairs();
    uint64_t segments = 0;
    for (const SegmentRef& segment : object.segments) segments += segment.bytes().size();
    const double measured = static_cast<double>(std::max(
        counting_->peak_bytes() - before + 4 * pairs, while_packing + 5 * pairs + segments));
    EXPECT_NEAR(static_cast<double>(pipeline.EstimateBytes(input)), measured, 0.1 * measured)
        << tokens << " tokens";
  }
}

}  // namespace
}  // namespace kvtier
