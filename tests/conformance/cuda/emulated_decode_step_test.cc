// Steps over the emulated device: replayed as launched, what they ask the device for once they
// repeat, and what happens where a step cannot be captured.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/decoder.h"
#include "compressor/resident_cache.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/conformance/cuda/watched_device.h"
#include "tests/conformance/decode_step_conformance.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kVocabulary = 264;  // Of the tiny model.

std::unique_ptr<Backend> MakeBackend(std::shared_ptr<Device> device, DType activations) {
  auto gemm = MakePlainGemm(device);
  return *MakeDeviceBackend(std::move(device), std::move(gemm), activations);
}

TEST(EmulatedDecodeStepTest, ReplayedStepsAreLaunchedSteps) {
  ExpectReplayedStepsAreLaunchedSteps(
      [](DType activations) { return MakeBackend(MakeEmulatedDevice(), activations); });
}

TEST(EmulatedDecodeStepTest, TwoDecodersOfOneObjectAtOnce) {
  ExpectTwoDecodersOfOneObject(MakeBackend(MakeEmulatedDevice(), DType::kF32));
}

class WatchedStepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    device_ = std::make_shared<WatchedDevice>(MakeEmulatedDevice());
    const TestModel on_host = MakeTestModel();
    object_ = CompressForTest(*on_host.model, RandomTokens(60, 1));
    model_ = MakeTestModel({}, MakeBackend(device_, DType::kF32));
  }

  std::shared_ptr<const ResidentCache> Attach() {
    auto cache = ResidentCache::Create(*model_.backend, PrefixOf(object_, 6));
    KVTIER_EXPECT_OK(cache.status());
    return cache.value_or(nullptr);
  }
  std::unique_ptr<Decoder> MakeDecoder(const std::shared_ptr<const ResidentCache>& cache,
                                       int64_t tail = 300, StepMode steps = StepMode::kReplayed) {
    auto decoder = Decoder::Create(*model_.model, cache, tail, steps);
    KVTIER_EXPECT_OK(decoder.status());
    return decoder.ok() ? *std::move(decoder) : nullptr;
  }
  static std::vector<float> Step(Decoder& decoder, uint32_t id) {
    const auto logits = decoder.Append({&id, 1});
    EXPECT_THAT(logits, IsOk());
    return logits.ok() ? std::vector<float>(logits->begin(), logits->end()) : std::vector<float>();
  }

  std::shared_ptr<WatchedDevice> device_;
  CompressedObject object_;
  TestModel model_;
};

TEST_F(WatchedStepTest, AStepThatRepeatsMovesItsStateAndItsLogitsAndNothingElse) {
  const auto cache = Attach();
  for (const StepMode mode : {StepMode::kReplayed, StepMode::kLaunched}) {
    const auto decoder = MakeDecoder(cache, 300, mode);
    KVTIER_ASSERT_OK(decoder->Append(RandomTokens(5, 2)).status());
    Step(*decoder, 1);
    Step(*decoder, 2);
    for (uint32_t id = 3; id < 40; ++id) {
      const WatchedDevice::Counts before = device_->counts();
      Step(*decoder, id);
      const WatchedDevice::Counts after = device_->counts();
      EXPECT_EQ(after.allocations, before.allocations);
      EXPECT_EQ(after.frees, before.frees);
      EXPECT_EQ(after.uploads, before.uploads + 1);
      EXPECT_EQ(after.uploaded_bytes, before.uploaded_bytes + 24);
      EXPECT_EQ(after.downloads, before.downloads + 1);
      EXPECT_EQ(after.downloaded_bytes, before.downloaded_bytes + kVocabulary * sizeof(float));
      EXPECT_EQ(after.waits, before.waits);
      EXPECT_EQ(after.captures, before.captures);
    }
  }
}

// The object's tables and plans are brought over for the first question, not for the next one.
TEST_F(WatchedStepTest, QuestionsOnOneObjectShareItsPlans) {
  const auto cache = Attach();
  const auto uploads_of_two_steps = [&] {
    const auto decoder = MakeDecoder(cache);
    KVTIER_EXPECT_OK(decoder->Append(RandomTokens(5, 2)).status());
    const WatchedDevice::Counts before = device_->counts();
    Step(*decoder, 1);
    Step(*decoder, 2);
    return device_->counts().uploads - before.uploads;
  };
  EXPECT_EQ(uploads_of_two_steps(), 3u);  // A plan and two states.
  EXPECT_EQ(uploads_of_two_steps(), 2u);
}

TEST_F(WatchedStepTest, AQuestionOfOneStepIsNotCaptured) {
  const auto cache = Attach();
  const auto decoder = MakeDecoder(cache);
  Step(*decoder, 1);
  EXPECT_EQ(device_->counts().captures, 0u);
  Step(*decoder, 2);
  EXPECT_EQ(device_->counts().captures, 1u);
  // The next question from the first row on: the same launches.
  decoder->Reset();
  Step(*decoder, 3);
  EXPECT_EQ(device_->counts().captures, 1u);
  EXPECT_EQ(decoder->step_counts().replayed, 2u);
}

TEST_F(WatchedStepTest, GoesOnLaunchingWhereACaptureFails) {
  const auto cache = Attach();
  const auto plain = MakeDecoder(cache, 40, StepMode::kLaunched);
  std::vector<std::vector<float>> expected;
  for (uint32_t id = 0; id < 6; ++id) expected.push_back(Step(*plain, id));

  device_->FailCaptures(absl::InternalError("no graph today"));
  testing::internal::CaptureStderr();
  for (int question = 0; question < 2; ++question) {
    const auto decoder = MakeDecoder(cache, 40);
    const uint64_t captures = device_->counts().captures;
    for (uint32_t id = 0; id < 6; ++id) EXPECT_EQ(Step(*decoder, id), expected[id]);
    EXPECT_EQ(device_->counts().captures, captures + 1) << "tried once a question";
    EXPECT_EQ(decoder->step_counts().captures_refused, 1u);
    EXPECT_EQ(decoder->step_counts().launched, 6u);
    EXPECT_EQ(decoder->step_counts().replayed, 0u);
  }
  const std::string log = testing::internal::GetCapturedStderr();
  const size_t first = log.find("no graph today");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(log.find("no graph today", first + 1), std::string::npos) << "logged once";

  // A device without graphs is nothing to count or to tell.
  device_->FailCaptures(absl::UnimplementedError("no graphs"));
  const auto decoder = MakeDecoder(cache, 40);
  for (uint32_t id = 0; id < 6; ++id) EXPECT_EQ(Step(*decoder, id), expected[id]);
  EXPECT_EQ(decoder->step_counts().captures_refused, 0u);
  EXPECT_EQ(decoder->step_counts().launched, 6u);
}

TEST_F(WatchedStepTest, RefusesWhatDoesNotFit) {
  const auto cache = Attach();
  DecodeSteps& steps = *model_.backend->decode_steps();
  const auto code = [&](const DecodeStepSpec& spec) { return steps.Create(spec).status().code(); };
  KVTIER_ASSERT_OK_AND_ASSIGN(DenseCache tail,
                              DenseCache::Create(*model_.backend, cache->geometry(), 8));
  DecodeStepSpec spec;
  spec.rows = cache->prepared();
  spec.tails = {tail.layer(0), tail.layer(1)};
  spec.windows = {0, 0};
  spec.group = 2;
  spec.scale = 1;
  spec.vocabulary = kVocabulary;
  EXPECT_EQ(code(spec), absl::StatusCode::kOk);
  DecodeStepSpec bad = spec;
  bad.rows = nullptr;
  EXPECT_EQ(code(bad), absl::StatusCode::kInvalidArgument);
  bad = spec;
  bad.tails.pop_back();
  EXPECT_EQ(code(bad), absl::StatusCode::kInvalidArgument);
  bad = spec;
  bad.tails[1].dtype = DType::kBf16;
  EXPECT_EQ(code(bad), absl::StatusCode::kInvalidArgument);
  bad = spec;
  bad.windows[0] = -1;
  EXPECT_EQ(code(bad), absl::StatusCode::kInvalidArgument);
  bad = spec;
  bad.group = 0;
  EXPECT_EQ(code(bad), absl::StatusCode::kInvalidArgument);

  KVTIER_ASSERT_OK_AND_ASSIGN(const auto step, steps.Create(spec));
  const auto run = [&](const StepState& state) {
    return step->Run(state, [] { return absl::OkStatus(); });
  };
  KVTIER_EXPECT_OK(run({.token = 263, .position = 9, .tail_row = 7}));
  EXPECT_THAT(run({.token = 264}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("264")));
  EXPECT_THAT(run({.tail_row = 8}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("8")));
  EXPECT_THAT(run({.position = -1}), StatusIs(absl::StatusCode::kInvalidArgument));
  // Nor do views of other shapes.
  KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor row, model_.backend->Allocate(DType::kF32, 1, 7));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor rows, model_.backend->Allocate(DType::kF32, 2, 64));
  EXPECT_THAT(step->AppendKv(0, row, row), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(step->Attention(0, row, row), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(step->Attention(2, row, row), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(step->AppendKv(0, rows, rows), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(step->Embed(model_.model->embedding(), 1, row),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(step->Rope(row, 1, model_.model->rope(0)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(step->Linear(row, model_.model->lm_head(), row),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(WatchedStepTest, NothingIsAppendedOnAnError) {
  const auto cache = Attach();
  const auto decoder = MakeDecoder(cache, 8);
  uint32_t id = 264;
  EXPECT_THAT(decoder->Append({&id, 1}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(decoder->tail_length(), 0);
  for (id = 0; id < 8; ++id) Step(*decoder, id);
  EXPECT_THAT(decoder->Append({&id, 1}), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(decoder->tail_length(), 8);
}

// What a real capture forbids, and that the threads beside it do not notice.
TEST(EmulatedCaptureTest, KeepsLaunchesAndRefusesTheRest) {
  const std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory memory, DeviceMemory::Allocate(device, 64));
  char host[64] = {};
  EXPECT_THAT(device->EndCapture(), StatusIs(absl::StatusCode::kFailedPrecondition));
  const std::vector<std::function<absl::Status()>> refused = {
      [&] { return device->Allocate(8).status(); },
      [&] { return device->CopyIn(host, memory.as<void>(), 8); },
      [&] { return device->CopyOut(memory.as<void>(), host, 8); },
      [&] { return device->BeginCopyOut(memory.as<void>(), host, 8).status(); },
      [&] { return device->Synchronize(); },
      [&] { return device->BeginCapture(); },
  };
  for (size_t i = 0; i < refused.size(); ++i) {
    KVTIER_ASSERT_OK(device->BeginCapture());
    EXPECT_THAT(refused[i](), StatusIs(absl::StatusCode::kFailedPrecondition)) << i;
    const bool only_refused = i + 1 == refused.size();  // A second capture spoils nothing.
    EXPECT_EQ(device->EndCapture().ok(), only_refused) << i;
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(void* const gone, device->Allocate(8));
  KVTIER_ASSERT_OK(device->BeginCapture());
  device->Free(gone);
  EXPECT_THAT(device->EndCapture(), StatusIs(absl::StatusCode::kFailedPrecondition));

  KVTIER_ASSERT_OK(device->CopyIn(std::string(64, 'x').data(), memory.as<void>(), 64));
  KVTIER_ASSERT_OK(device->BeginCapture());
  KVTIER_EXPECT_OK(device->Zero(memory.as<void>(), 32));
  std::thread([&] {
    KVTIER_EXPECT_OK(device->CopyOut(memory.as<void>(), host, 64));
    KVTIER_EXPECT_OK(device->Zero(memory.as<char>() + 32, 32));
  }).join();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto graph, device->EndCapture());
  EXPECT_EQ(std::string(host, 64), std::string(64, 'x')) << "kept, not run";
  KVTIER_ASSERT_OK(device->CopyOut(memory.as<void>(), host, 64));
  EXPECT_EQ(std::string(host, 64), std::string(32, 'x') + std::string(32, '\0'));
  KVTIER_EXPECT_OK(graph->Replay());
  KVTIER_ASSERT_OK(device->CopyOut(memory.as<void>(), host, 64));
  EXPECT_EQ(std::string(host, 64), std::string(64, '\0'));
}

}  // namespace
}  // namespace kvtier
