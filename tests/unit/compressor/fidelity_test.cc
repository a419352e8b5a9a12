#include "compressor/fidelity.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/decoder.h"
#include "compressor/pipeline.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(SampleChunksTest, AreSpreadEvenly) {
  EXPECT_THAT(SampleChunks(0, 4), IsEmpty());
  EXPECT_THAT(SampleChunks(4, 0), IsEmpty());
  EXPECT_THAT(SampleChunks(1, 4), ElementsAre(0));
  EXPECT_THAT(SampleChunks(3, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(SampleChunks(10, 1), ElementsAre(5));
  EXPECT_THAT(SampleChunks(10, 2), ElementsAre(2, 7));
  for (uint32_t chunks = 1; chunks < 60; ++chunks) {
    for (uint32_t most = 1; most < 70; ++most) {
      const std::vector<uint32_t> sample = SampleChunks(chunks, most);
      EXPECT_EQ(sample.size(), std::min(chunks, most));
      EXPECT_LT(sample.back(), chunks);
      EXPECT_EQ(std::adjacent_find(sample.begin(), sample.end(), std::greater_equal<>()),
                sample.end());
    }
  }
}

// The tiny model's chunks have 64 tokens: 200 tokens are four of them, the last of 8.
TEST(FidelityTest, CountsWhatGreedyDecodingWouldSayTokenByToken) {
  const TestModel test = MakeTestModel();
  const Model& model = *test.model;
  const std::vector<uint32_t> context = RandomTokens(200, 3);
  const CompressedObject object = CompressForTest(
      model, context, {.kv_dtype = DType::kF32, .edges = BandEdges::Parse("0.2,0.6,1").value()});
  std::vector<uint64_t> heard;
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const Fidelity fidelity,
      MeasureFidelity(
          model, object, context, 3, [&](uint64_t done) { heard.push_back(done); }, CancelToken()));
  EXPECT_EQ(fidelity.chunks, 3u);
  const std::vector<uint32_t> chunks = SampleChunks(4, 3);
  uint64_t tokens = 0;
  for (const uint32_t c : chunks) tokens += c == 3 ? 8 : 64;
  EXPECT_EQ(fidelity.tokens, tokens);
  EXPECT_EQ(FidelityTokens(model.profile(), 200, 3), tokens);
  EXPECT_EQ(heard.size(), 9u);
  EXPECT_EQ(heard.back(), 3 * tokens);

  ASSERT_EQ(fidelity.correct.size(), 3u);
  for (uint32_t band = 0; band < 3; ++band) {
    uint64_t correct = 0;
    for (const uint32_t c : chunks) {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto decoder,
                                  Decoder::Create(model, PrefixOf(object, band + 1), 200));
      const std::vector<uint32_t> ids = model.profile().RepeatInput(context, c);
      const PromptProfile::Chunk chunk = model.profile().ChunkAt(200, c);
      const size_t first = ids.size() - (chunk.end - chunk.begin);
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        KVTIER_ASSERT_OK_AND_ASSIGN(const auto logits, decoder->Append({&ids[i], 1}));
        const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
        if (i + 1 >= first && static_cast<uint32_t>(best) == ids[i + 1]) ++correct;
      }
    }
    EXPECT_EQ(fidelity.correct[band], correct) << band;
  }
  Manifest measured = *object.manifest;
  measured.fidelity = fidelity;
  KVTIER_EXPECT_OK(measured.Validate());
}

TEST(FidelityTest, ThePipelineMeasuresWhatItPacked) {
  auto counting = std::make_unique<CountingBackend>(MakeReferenceBackend());
  CountingBackend& backend = *counting;
  const TestModel test = MakeTestModel({}, std::move(counting));
  const Pipeline pipeline(*test.model, {.kv_dtype = DType::kF32});
  const std::vector<uint32_t> context = RandomTokens(150, 5);
  CompressInput input;
  input.context = context;
  const uint64_t without = pipeline.EstimateBytes(input);
  input.fidelity_chunks = 2;
  std::vector<std::string> heard;
  const uint64_t before = backend.live_bytes();
  uint64_t while_measuring = 0;
  const auto progress = [&](const CompressProgress& p) {
    if (p.stage != CompressStage::kMeasure) return;
    heard.push_back(absl::StrCat(p.tokens_done, "/", p.tokens_total));
    while_measuring = std::max(while_measuring, backend.live_bytes() - before);
  };
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                              pipeline.Compress(input, progress, CancelToken()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Fidelity expected, MeasureFidelity(*test.model, object, context,
                                                                       2, nullptr, CancelToken()));
  EXPECT_EQ(object.manifest->fidelity, expected);
  EXPECT_EQ(heard.front(), absl::StrCat("0/", 6 * expected.tokens));
  EXPECT_EQ(heard.back(), absl::StrCat(6 * expected.tokens, "/", 6 * expected.tokens));
  // Admission knows of it.
  uint64_t segments = 0;
  for (const SegmentRef& segment : object.segments) segments += segment.bytes().size();
  EXPECT_GE(pipeline.EstimateBytes(input), while_measuring + segments);
  EXPECT_GE(pipeline.EstimateBytes(input), without);
}

TEST(FidelityTest, RefusesAnotherContextAndStopsWhenCancelled) {
  const TestModel test = MakeTestModel();
  const std::vector<uint32_t> context = RandomTokens(100, 4);
  const CompressedObject object = CompressForTest(*test.model, context);
  const auto measure = [&](std::span<const uint32_t> ids, uint32_t chunks,
                           const CancelToken& cancel) {
    return MeasureFidelity(*test.model, object, ids, chunks, nullptr, cancel);
  };
  EXPECT_THAT(measure(std::span(context).first(99), 1, CancelToken()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("99 tokens")));
  EXPECT_THAT(measure(context, 0, CancelToken()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no chunk")));
  CancelToken cancel;
  cancel.Cancel();
  EXPECT_THAT(measure(context, 1, cancel), StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace kvtier
