#include "tests/conformance/decode_step_conformance.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/decoder.h"
#include "compressor/pipeline.h"
#include "compressor/resident_cache.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

constexpr int64_t kSteps = 40;
// A question that leaves 16 rows of the 256 that a plan holds for: the steps cross from one plan to
// the next, which is a border between tiles of 64 keys, too.
constexpr int64_t kLongQuestion = 240;
constexpr int64_t kPlanRows = 256;

struct StepCase {
  std::string name;
  DType activations = DType::kF32;
  std::string codec = "raw";
  DType kv_dtype = DType::kBf16;
  std::string family = "";  // A checkpoint of tests/golden/families; empty: the tiny Llama.
  TinyModelOptions tiny = {};
  int64_t question = 7;  // Tokens.
};

std::vector<StepCase> Cases() {
  // Heads of 64 run on tensor cores in bf16; six query heads in three groups of KV heads.
  const TinyModelOptions wide = {.q_heads = 6, .kv_heads = 3, .head_dim = 64};
  // More query heads of a group than a tile has rows.
  const TinyModelOptions grouped = {.q_heads = 20, .kv_heads = 1, .head_dim = 64};
  return {
      {.name = "raw fp32", .kv_dtype = DType::kF32, .question = kLongQuestion},
      {.name = "int8", .codec = "int8"},
      {.name = "int4", .codec = "int4"},
      {.name = "tensor cores, raw", .activations = DType::kBf16, .tiny = wide},
      {.name = "tensor cores, int4", .activations = DType::kBf16, .codec = "int4", .tiny = wide},
      {.name = "a group of 20", .activations = DType::kBf16, .tiny = grouped},
      {.name = "windows", .family = "gemma3_text", .question = kLongQuestion},
      {.name = "norms of heads", .family = "qwen3_tied"}};
}

// A model on two backends: one that compresses, one that decodes.
struct Models {
  std::unique_ptr<TempDir> folder = std::make_unique<TempDir>();
  std::unique_ptr<Backend> cpu = MakeCpuBackend({.threads = 1});
  std::unique_ptr<Backend> device;
  std::unique_ptr<Model> on_cpu;
  std::unique_ptr<Model> on_device;
};

Models Load(const StepCase& c, std::unique_ptr<Backend> device) {
  Models models;
  models.device = std::move(device);
  std::string path = SourcePath("tests/golden/families/" + c.family);
  if (c.family.empty()) {
    absl::StatusOr<std::string> tiny = WriteTinyModel(c.tiny, models.folder->File("tiny"));
    KVTIER_EXPECT_OK(tiny.status());
    path = tiny.value_or("");
  }
  absl::StatusOr<std::unique_ptr<Model>> on_cpu = Model::Load(path, *models.cpu);
  KVTIER_EXPECT_OK(on_cpu.status());
  absl::StatusOr<std::unique_ptr<Model>> on_device = Model::Load(path, *models.device);
  KVTIER_EXPECT_OK(on_device.status());
  if (on_cpu.ok()) models.on_cpu = *std::move(on_cpu);
  if (on_device.ok()) models.on_device = *std::move(on_device);
  return models;
}

// Three of the bands where the model's windows allow it, all of them otherwise.
std::shared_ptr<const ResidentCache> Attach(const StepCase& c, const Models& models) {
  const auto vocabulary = static_cast<uint32_t>(models.on_cpu->config().vocabulary);
  const std::vector<uint32_t> context = RandomTokens(90, /*seed=*/5, vocabulary);
  CompressInput input;
  input.context = context;
  input.codec = c.codec;
  input.system = std::vector<uint32_t>();
  const absl::StatusOr<CompressedObject> object =
      Pipeline(*models.on_cpu, {.kv_dtype = c.kv_dtype}).Compress(input, nullptr, CancelToken());
  KVTIER_EXPECT_OK(object.status());
  if (!object.ok()) return nullptr;
  absl::StatusOr<std::shared_ptr<const ResidentCache>> cache =
      ResidentCache::Create(*models.device, PrefixOf(*object, 4));
  KVTIER_EXPECT_OK(cache.status());
  return cache.value_or(nullptr);
}

std::vector<std::vector<float>> Decode(Decoder& decoder, const std::vector<uint32_t>& ids,
                                       size_t question) {
  std::vector<std::vector<float>> logits;
  for (size_t at = 0; at < ids.size();) {
    const size_t count = at == 0 ? question : 1;
    const auto got = decoder.Append(std::span(ids).subspan(at, count));
    EXPECT_THAT(got, IsOk()) << "token " << at;
    if (!got.ok()) break;
    logits.emplace_back(got->begin(), got->end());
    at += count;
  }
  return logits;
}

// How far two lists of logits are from each other, over the largest of the first.
double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  double apart = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]}));
    apart = std::max(apart, std::abs(double{a[i]} - b[i]));
  }
  return apart / largest;
}

void ExpectAgree(const StepCase& c, std::unique_ptr<Backend> device) {
  ASSERT_NE(device->decode_steps(), nullptr);
  const Models models = Load(c, std::move(device));
  ASSERT_NE(models.on_device, nullptr);
  const auto cache = Attach(c, models);
  ASSERT_NE(cache, nullptr);
  const auto vocabulary = static_cast<uint32_t>(models.on_cpu->config().vocabulary);
  const std::vector<uint32_t> ids = RandomTokens(c.question + kSteps, /*seed=*/6, vocabulary);
  const uint64_t plans = c.question == kLongQuestion ? 2 : 1;
  static_assert(kLongQuestion < kPlanRows && kLongQuestion + kSteps > kPlanRows);
  std::vector<std::vector<float>> of_mode[3];
  for (const StepMode mode : {StepMode::kReplayed, StepMode::kLaunched, StepMode::kPlain}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const auto decoder, Decoder::Create(*models.on_device, cache, c.question + kSteps, mode));
    of_mode[static_cast<int>(mode)] = Decode(*decoder, ids, c.question);
    const StepCounts counts = decoder->step_counts();
    EXPECT_EQ(counts.captures_refused, 0u);
    EXPECT_EQ(counts.launched, mode == StepMode::kReplayed   ? plans
                               : mode == StepMode::kLaunched ? uint64_t{kSteps}
                                                             : 0);
    EXPECT_EQ(counts.replayed, mode == StepMode::kReplayed ? kSteps - plans : 0);
  }
  const auto& replayed = of_mode[static_cast<int>(StepMode::kReplayed)];
  const auto& launched = of_mode[static_cast<int>(StepMode::kLaunched)];
  const auto& plain = of_mode[static_cast<int>(StepMode::kPlain)];
  ASSERT_EQ(replayed.size(), 1u + kSteps);
  ASSERT_EQ(launched.size(), 1u + kSteps);
  ASSERT_EQ(plain.size(), 1u + kSteps);
  // Sums of a head's parts may be cut at other keys: rounding of the type, through a few layers.
  const double limit = c.activations == DType::kF32 ? 1e-4 : 0.06;
  for (size_t i = 0; i < replayed.size(); ++i) {
    ASSERT_EQ(replayed[i], launched[i]) << "step " << i;
    ASSERT_LE(Distance(plain[i], replayed[i]), limit) << "step " << i;
  }
}

}  // namespace

void ExpectReplayedStepsAreLaunchedSteps(
    const std::function<std::unique_ptr<Backend>(DType activations)>& make) {
  for (const StepCase& c : Cases()) {
    SCOPED_TRACE(c.name);
    std::unique_ptr<Backend> backend = make(c.activations);
    ASSERT_NE(backend, nullptr);
    ExpectAgree(c, std::move(backend));
    if (testing::Test::HasFatalFailure()) return;
  }
}

void ExpectTwoDecodersOfOneObject(std::unique_ptr<Backend> backend) {
  ASSERT_NE(backend, nullptr);
  const StepCase c{.name = "two"};
  const Models models = Load(c, std::move(backend));
  ASSERT_NE(models.on_device, nullptr);
  const auto cache = Attach(c, models);
  ASSERT_NE(cache, nullptr);
  const std::vector<uint32_t> questions[2] = {RandomTokens(40, 7), RandomTokens(30, 8)};
  std::vector<std::vector<float>> alone[2];
  std::vector<std::vector<float>> together[2];
  std::unique_ptr<Decoder> decoders[2];
  for (int i = 0; i < 2; ++i) {
    KVTIER_ASSERT_OK_AND_ASSIGN(decoders[i], Decoder::Create(*models.on_device, cache, 40));
    alone[i] = Decode(*decoders[i], questions[i], /*question=*/5);
    // Again from the first token, which the launches that were kept serve as well.
    decoders[i]->Reset();
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto fresh, Decoder::Create(*models.on_device, cache, 40));
      together[i] = Decode(*decoders[i], questions[i], 5);
      EXPECT_EQ(Decode(*fresh, questions[i], 5), together[i]);
      EXPECT_EQ(fresh->step_counts().captures_refused, 0u);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(together[i], alone[i]) << "question " << i;
}

}  // namespace kvtier
