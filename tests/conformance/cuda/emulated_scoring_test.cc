// A whole compression on a device: scores stay there from the first chunk to the packed rows, the
// host waits for them once, and the object is the one that the host's ranking makes.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/packer.h"
#include "compressor/pipeline.h"
#include "compressor/reference_backend.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "cuda/score_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/forwarding_backend.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

constexpr uint32_t kChunk = 16;

std::unique_ptr<Backend> DeviceOf(std::shared_ptr<EmulatedDeviceLog> log = nullptr) {
  const std::shared_ptr<Device> device = MakeEmulatedDevice(uint64_t{1} << 32, std::move(log));
  return MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32).value();
}

TestModel SmallModel(std::unique_ptr<Backend> backend) {
  TinyModelOptions options;
  options.chunk_tokens = kChunk;
  return MakeTestModel(options, std::move(backend));
}

PipelineOptions Options(const Model& model) {
  HeadScores heads;
  heads.layers = 2;
  heads.kv_heads = 2;
  heads.log_scores = {-1, -3, -2, -0.5f};
  heads.model_digest = model.digest();
  heads.file_digest = *Digest::FromHex(std::string(64, 'c'));
  PipelineOptions options;
  options.kv_dtype = DType::kF32;
  options.head_scores = std::make_shared<const HeadScores>(heads);
  return options;
}

// What the host waited for between the end of the prefill and the beginning of packing.
struct Traffic {
  int64_t waits = 0;
  int64_t bytes_out = 0;
};

Traffic WhileScoring(const std::string& recipe, uint64_t tokens) {
  auto log = std::make_shared<EmulatedDeviceLog>();
  const TestModel tiny = SmallModel(DeviceOf(log));
  const std::vector<uint32_t> context = RandomTokens(tokens, /*seed=*/3);
  CompressInput input;
  input.context = context;
  input.recipe = recipe;
  Traffic begin;
  Traffic end;
  const auto progress = [&](const CompressProgress& p) {
    Traffic* const now = p.stage == CompressStage::kPrefill                      ? &begin
                         : p.stage == CompressStage::kPack && p.tokens_done == 0 ? &end
                                                                                 : nullptr;
    if (now != nullptr) *now = {log->waits, log->bytes_out};
  };
  KVTIER_EXPECT_OK(
      Pipeline(*tiny.model, Options(*tiny.model)).Compress(input, progress, CancelToken()));
  return {end.waits - begin.waits, end.bytes_out - begin.bytes_out};
}

TEST(EmulatedScoringTest, TheHostWaitsOnceForTheScoresOfAllChunks) {
  for (const std::string recipe : {"kvzip", "uniform", "full-softmax"}) {
    for (const uint64_t chunks : {1, 2, 5}) {
      SCOPED_TRACE(testing::Message() << recipe << ", " << chunks << " chunks");
      const Traffic traffic = WhileScoring(recipe, chunks * kChunk);
      EXPECT_EQ(traffic.waits, 1);
      EXPECT_EQ(traffic.bytes_out, int64_t{sizeof(ScoreFindings)});
    }
  }
  // Once more for the best score, which ranks the system prompt's first tokens.
  EXPECT_EQ(WhileScoring("kvpress", 3 * kChunk).waits, 2);
  EXPECT_EQ(WhileScoring("head", 3 * kChunk).waits, 0);
}

// Ranks and packs on the host what the device has computed.
class HostRanking final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  Packer* packer() override { return nullptr; }
};

TEST(EmulatedScoringTest, TheObjectIsTheOneOfTheHostsRanking) {
  const TestModel here = SmallModel(DeviceOf());
  const TestModel host = SmallModel(std::make_unique<HostRanking>(DeviceOf()));
  const std::vector<uint32_t> context = RandomTokens(70, /*seed=*/9);
  for (const std::string recipe : {"kvzip", "uniform", "kvpress", "kvzip+", "head"}) {
    for (const bool system : {true, false}) {
      SCOPED_TRACE(testing::Message() << recipe << (system ? "" : ", no system prompt"));
      CompressInput input;
      input.context = context;
      input.recipe = recipe;
      if (!system) input.system.emplace();
      const auto compress = [&](const TestModel& tiny) {
        return Pipeline(*tiny.model, Options(*tiny.model)).Compress(input, nullptr, CancelToken());
      };
      KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object, compress(here));
      KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject expected, compress(host));
      ASSERT_EQ(object.segments.size(), expected.segments.size());
      for (size_t s = 0; s < object.segments.size(); ++s) {
        EXPECT_TRUE(std::ranges::equal(object.segments[s].bytes(), expected.segments[s].bytes()))
            << "segment " << s;
      }
      for (size_t b = 0; b < object.manifest->bands.size(); ++b) {
        EXPECT_EQ(object.manifest->bands[b].threshold, expected.manifest->bands[b].threshold) << b;
      }
    }
  }
}

TEST(EmulatedScoringTest, ScoresOfAnotherBackendAreNotRanked) {
  const auto here = DeviceOf();
  const ScoreTable table = ScoreTable::Create(1, 2, 30);
  const BandEdges edges = BandEdges::Default();
  for (const bool on_host : {true, false}) {
    const auto there = on_host ? MakeReferenceBackend() : DeviceOf();
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto scores, PlaceScores(*there, table));
    EXPECT_THAT(RankRows(*here, {.scores = scores.get(), .edges = &edges}),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::HasSubstr("scores of another backend")));
  }
  // More than its kernels count.
  EXPECT_THAT(here->MakeScores({.layers = 1 << 11, .kv_heads = 1 << 10, .tokens = 1 << 10}),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("2147483648 pairs")));
}

// An overflow in one layer, as it would reach the scores of one chunk.
class OverflowingBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  // Token `token` of head 1 in the second layer that is scored, of the chunk that begins there.
  int64_t chunk_begin = 0;
  float value = 0;

  absl::Status ScoreColumnMax(const ScoreArgs& args) override {
    absl::Status scored = inner().ScoreColumnMax(args);
    const bool second = ++calls_ % 2 == 0;
    if (!scored.ok() || !second || args.chunk_begin != chunk_begin) return scored;
    TensorView one;
    one.data = args.out + args.out_stride + 4;
    one.rows = one.cols = 1;
    return inner().Upload(std::as_bytes(std::span(&value, 1)), one);
  }

 private:
  int calls_ = 0;
};

TEST(EmulatedScoringTest, AScoreThatIsNotFiniteIsNamedAsOnTheHost) {
  const std::vector<uint32_t> context = RandomTokens(4 * kChunk, /*seed=*/5);
  for (const std::string recipe : {"kvzip", "kvpress"}) {
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      for (const bool on_device : {true, false}) {
        SCOPED_TRACE(testing::Message() << recipe << " " << value << " device " << on_device);
        auto owned =
            std::make_unique<OverflowingBackend>(on_device ? DeviceOf() : MakeReferenceBackend());
        OverflowingBackend& backend = *owned;
        const TestModel tiny = SmallModel(std::move(owned));
        backend.value = value;
        backend.chunk_begin =
            static_cast<int64_t>(tiny.model->profile().prefix.size()) + 2 * kChunk;
        CompressInput input;
        input.context = context;
        input.recipe = recipe;
        EXPECT_THAT(
            Pipeline(*tiny.model, Options(*tiny.model)).Compress(input, nullptr, CancelToken()),
            StatusIs(absl::StatusCode::kInvalidArgument,
                     testing::HasSubstr(absl::StrCat("score of layer 1, head 1, context token ",
                                                     2 * kChunk + 4, " is "))));
      }
    }
  }
}

}  // namespace
}  // namespace kvtier
