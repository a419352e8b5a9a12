// The fixture model against transformers (tests/golden/README.md): ours must be that model.
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/dense_reference.h"
#include "compressor/forward.h"
#include "compressor/reference_backend.h"
#include "compressor/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"
#include "tests/unit/compressor/golden_tensors.h"

namespace kvtier {
namespace {

const std::string kModel = SourcePath("tests/fixtures/model");
const std::string kGolden = SourcePath("tests/golden/fixture_logits.safetensors");

// Largest error over root mean square: fp32 sums in another order than PyTorch's.
constexpr double kTolerance = 1e-4;

class FixtureGoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kGolden)) GTEST_SKIP() << kGolden << " is not there";
    KVTIER_ASSERT_OK_AND_ASSIGN(golden_, SafetensorsFile::Open(kGolden));
  }
  template <typename T>
  std::vector<T> Golden(const std::string& name) {
    return GoldenTensor<T>(*golden_, name);
  }
  static void ExpectClose(const std::vector<float>& got, const std::vector<float>& want,
                          const char* what) {
    ASSERT_EQ(got.size(), want.size());
    double squares = 0;
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      squares += double{want[i]} * want[i];
      worst = std::max(worst, std::abs(double{got[i]} - want[i]));
    }
    const double relative = worst / std::sqrt(squares / double(want.size()));
    EXPECT_LE(relative, kTolerance) << what;
    RecordProperty(what, std::to_string(relative));
  }
  void CheckBackend(Backend& backend, bool with_long) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto model, Model::Load(kModel, backend));
    const int64_t vocabulary = model->config().vocabulary;
    const Geometry geometry = model->config().MakeGeometry(DType::kF32);
    KVTIER_ASSERT_OK_AND_ASSIGN(DenseCache cache, DenseCache::Create(backend, geometry, 1500));
    KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*model, 512));
    std::vector<float> all;
    KVTIER_ASSERT_OK(
        Forward(*model, Golden<uint32_t>("short.ids"), {.tail = &cache}, scratch, {}, &all));
    std::vector<float> logits;
    for (uint32_t row : Golden<uint32_t>("short.logit_positions")) {
      logits.insert(logits.end(), all.begin() + row * vocabulary,
                    all.begin() + (row + 1) * vocabulary);
    }
    ExpectClose(logits, Golden<float>("short.logits"), "short_logits");

    const std::vector<uint32_t> positions = Golden<uint32_t>("short.row_positions");
    const size_t floats = positions.size() * static_cast<size_t>(model->config().head_dim);
    std::vector<float> keys;
    std::vector<float> values;
    for (int64_t layer = 0; layer < model->config().layers; ++layer) {
      for (int64_t head = 0; head < model->config().kv_heads; ++head) {
        keys.resize(keys.size() + floats);
        values.resize(values.size() + floats);
        KVTIER_ASSERT_OK(backend.GatherRows(cache.layer(layer), head, positions,
                                            AsMutableBytes(std::span(keys).last(floats)).data(),
                                            AsMutableBytes(std::span(values).last(floats)).data()));
      }
    }
    ExpectClose(keys, Golden<float>("short.keys"), "short_keys");
    ExpectClose(values, Golden<float>("short.values"), "short_values");

    if (!with_long) return;
    cache.SetLength(0);
    const std::vector<uint32_t> ids = Golden<uint32_t>("long.ids");
    KVTIER_ASSERT_OK(Prefill(*model, std::span(ids).first(1400), cache, scratch, nullptr));
    std::vector<float> last(static_cast<size_t>(vocabulary));
    KVTIER_ASSERT_OK(Forward(*model, std::span(ids).subspan(1400),
                             {.tail = &cache, .first_position = 1400}, scratch, last));
    ExpectClose(last, Golden<float>("long.last_logits"), "long_last_logits");
  }

  std::unique_ptr<SafetensorsFile> golden_;
};

TEST_F(FixtureGoldenTest, ReferenceBackendComputesWhatTransformersComputes) {
  CheckBackend(*MakeReferenceBackend(), /*with_long=*/false);
}

TEST_F(FixtureGoldenTest, CpuBackendComputesWhatTransformersComputes) {
  CheckBackend(*MakeCpuBackend({.threads = 2, .compute = CpuCompute::kF32}), /*with_long=*/true);
}

TEST_F(FixtureGoldenTest, DenseReferenceComputesWhatTransformersComputes) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto decoder,
                              DenseReferenceDecoder::Create(kModel, DType::kF32));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> all,
                              decoder->Logits(Golden<uint32_t>("short.ids")));
  std::vector<float> logits;
  for (uint32_t row : Golden<uint32_t>("short.logit_positions")) {
    logits.insert(logits.end(), all.begin() + row * 260, all.begin() + (row + 1) * 260);
  }
  ExpectClose(logits, Golden<float>("short.logits"), "short_logits");
  const std::vector<uint32_t> ids = Golden<uint32_t>("long.ids");
  KVTIER_ASSERT_OK(decoder->Prefill(std::span(ids).first(1499)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> last,
                              decoder->Logits(std::span(ids).last(1)));
  ExpectClose(last, Golden<float>("long.last_logits"), "long_last_logits");
}

}  // namespace
}  // namespace kvtier
