// The Gram-matrix shortcut against the formula it replaces, on weights read from the checkpoint.
#include "compressor/value_output_norms.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/host_backend.h"
#include "compressor/reference_backend.h"
#include "compressor/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

class ValueOutputNormsTest : public ::testing::TestWithParam<DType> {};

TEST_P(ValueOutputNormsTest, EqualTheNormsOfProjectedValues) {
  TinyModelOptions options;
  options.dtype = GetParam();
  options.hidden = 40;
  options.q_heads = 6;
  options.kv_heads = 2;
  options.head_dim = 32;
  for (const bool fast : {false, true}) {
    const TestModel tiny =
        MakeTestModel(options, fast ? MakeCpuBackend({.threads = 2}) : MakeReferenceBackend());
    const Model& model = *tiny.model;
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto norms, ValueOutputNorms::Create(model, CancelToken()));
    const DenseCache cache =
        PrefillForTest(model, RandomTokens(30, /*seed=*/1), DType::kF32, /*extra_rows=*/3);
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto file,
                                SafetensorsFile::Open(tiny.folder->File("tiny/model.safetensors")));
    for (int64_t layer = 0; layer < 2; ++layer) {
      const SafetensorsEntry& entry =
          file->entries().at(absl::StrCat("model.layers.", layer, ".self_attn.o_proj.weight"));
      std::vector<float> weight(40 * 6 * 32);  // [hidden, q_heads * head_dim]
      LoadFloats(entry.bytes.data(), GetParam(), weight);
      std::vector<float> got(6 * 20);
      KVTIER_ASSERT_OK(norms->LogNorms(layer, cache.layer(layer), 5, 25, got));
      const auto* values = static_cast<const float*>(cache.layer(layer).values);
      for (int64_t q_head = 0; q_head < 6; ++q_head) {
        for (int64_t j = 0; j < 20; ++j) {
          const float* value = values + (q_head / 3 * cache.capacity() + 5 + j) * 32;
          double square = 0;
          for (int64_t i = 0; i < 40; ++i) {
            double projected = 0;
            for (int64_t d = 0; d < 32; ++d) {
              projected += double{weight[i * 6 * 32 + q_head * 32 + d]} * value[d];
            }
            square += projected * projected;
          }
          EXPECT_NEAR(got[q_head * 20 + j], 0.5 * std::log(square), 2e-5)
              << "layer " << layer << ", query head " << q_head << ", row " << j;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, ValueOutputNormsTest,
                         ::testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& param) { return std::string(DTypeName(param.param)); });

TEST(ValueOutputNormsTest, AValueOfZerosHasASmallFiniteNorm) {
  const TestModel tiny = MakeTestModel();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto norms,
                              ValueOutputNorms::Create(*tiny.model, CancelToken()));
  const DenseCache cache = PrefillForTest(*tiny.model, RandomTokens(3, /*seed=*/1), DType::kF32);
  std::memset(cache.layer(0).values, 0, 32 * sizeof(float));
  std::vector<float> got(4 * 3);
  KVTIER_ASSERT_OK(norms->LogNorms(0, cache.layer(0), 0, 3, got));
  EXPECT_NEAR(got[0], std::log(1e-30), 1e-3);
  EXPECT_GT(got[1], -20);
}

TEST(ValueOutputNormsTest, RefusesRowsThatDoNotFit) {
  const TestModel tiny = MakeTestModel();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto norms,
                              ValueOutputNorms::Create(*tiny.model, CancelToken()));
  const DenseCache cache = PrefillForTest(*tiny.model, RandomTokens(3, /*seed=*/1), DType::kF32);
  std::vector<float> out(4 * 3);
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  KVTIER_EXPECT_OK(norms->LogNorms(1, cache.layer(1), 0, 3, out));
  EXPECT_THAT(norms->LogNorms(2, cache.layer(1), 0, 3, out), StatusIs(kInvalid));
  EXPECT_THAT(norms->LogNorms(1, cache.layer(1), 1, 4, out), StatusIs(kInvalid));
  EXPECT_THAT(norms->LogNorms(1, cache.layer(1), 0, 2, out), StatusIs(kInvalid));
}

TEST(ValueOutputNormsTest, AreMadeOnce) {
  const TestModel tiny = MakeTestModel();
  const LazyValueOutputNorms lazy(*tiny.model);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ValueOutputNorms* first, lazy.Get(CancelToken()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ValueOutputNorms* second, lazy.Get(CancelToken()));
  EXPECT_EQ(first, second);
}

// Counts products, and cancels at each one if told to: in the middle of the work.
class WatchedBackend final : public CountingBackend {
 public:
  using CountingBackend::CountingBackend;
  absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) override {
    ++products_;
    if (cancel != nullptr) cancel->Cancel();
    return CountingBackend::Linear(x, weights, y);
  }
  int products() const { return products_; }
  CancelToken* cancel = nullptr;

 private:
  int products_ = 0;
};

TEST(ValueOutputNormsTest, StopWhenCancelledAndAreMadeLater) {
  auto owned = std::make_unique<WatchedBackend>(MakeReferenceBackend());
  WatchedBackend& backend = *owned;
  const TestModel tiny = MakeTestModel({}, std::move(owned));
  const LazyValueOutputNorms lazy(*tiny.model);
  CancelToken cancel;
  backend.cancel = &cancel;
  const int before = backend.products();
  EXPECT_THAT(lazy.Get(cancel), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(backend.products() - before, 1) << "went on after it was cancelled";
  backend.cancel = nullptr;
  KVTIER_EXPECT_OK(lazy.Get(CancelToken()));
}

// One product of [head_dim, hidden] with itself for each query head, none over the model's width.
TEST(ValueOutputNormsTest, TakeOneProductForEachQueryHead) {
  auto owned = std::make_unique<WatchedBackend>(MakeReferenceBackend());
  WatchedBackend& backend = *owned;
  const TestModel tiny = MakeTestModel({}, std::move(owned));
  const int before = backend.products();
  KVTIER_ASSERT_OK(ValueOutputNorms::Create(*tiny.model, CancelToken()));
  EXPECT_EQ(backend.products() - before, 2 * 4);  // Layers x query heads.
}

}  // namespace
}  // namespace kvtier
