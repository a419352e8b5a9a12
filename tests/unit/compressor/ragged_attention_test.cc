// Attention over the bands of a packed object is dense attention in which every evicted pair has
// logit -inf.
#include <cmath>
#include <random>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

constexpr int64_t kQueryRows = 3, kTailRows = 5;

Tensor UploadRandom(Backend& backend, std::mt19937_64& random, int64_t rows, int64_t cols,
                    std::vector<float>* copy) {
  std::normal_distribution<float> normal;
  copy->resize(rows * cols);
  for (float& value : *copy) value = normal(random);
  absl::StatusOr<Tensor> tensor = backend.Allocate(DType::kF32, rows, cols);
  KVTIER_CHECK_OK(tensor);
  KVTIER_CHECK_OK(backend.Upload(AsBytes(std::span<const float>(*copy)), *tensor));
  return *std::move(tensor);
}

class RaggedAttentionTest : public ::testing::TestWithParam<bool> {};

TEST_P(RaggedAttentionTest, EqualsDenseAttentionWithMaskedPairs) {
  const TestModel tiny =
      MakeTestModel({}, GetParam() ? MakeCpuBackend({.threads = 2, .compute = CpuCompute::kF32})
                                   : MakeReferenceBackend());
  Backend& backend = *tiny.backend;
  const ModelConfig& config = tiny.model->config();
  const CompressedObject object = CompressForTest(*tiny.model, RandomTokens(150, /*seed=*/1));
  const auto whole = PrefixOf(object, 6);
  const int64_t length = static_cast<int64_t>(object.manifest->logical_length());
  const int64_t dim = config.head_dim, group = config.q_heads / config.kv_heads;
  std::mt19937_64 random(2);

  std::vector<float> q, k, v;
  const Tensor queries = UploadRandom(backend, random, kQueryRows, config.q_heads * dim, &q);
  const Tensor keys = UploadRandom(backend, random, kTailRows, config.kv_heads * dim, &k);
  const Tensor values = UploadRandom(backend, random, kTailRows, config.kv_heads * dim, &v);
  KVTIER_ASSERT_OK_AND_ASSIGN(DenseCache tail,
                              DenseCache::Create(backend, config.MakeGeometry(DType::kF32), 16));
  KVTIER_ASSERT_OK(backend.AppendKv(keys, values, tail.layer(0), 0));
  KVTIER_ASSERT_OK_AND_ASSIGN(Tensor out,
                              backend.Allocate(DType::kF32, kQueryRows, config.q_heads * dim));

  for (uint32_t bands = 1; bands <= 6; ++bands) {
    const auto kept = PrefixOf(object, bands);
    for (uint32_t layer = 0; layer < config.layers; ++layer) {
      HeadSpans spans;
      for (uint32_t h = 0; h < config.kv_heads; ++h) {
        spans.push_back(kept->spans(LayerIndex(layer), h));
      }
      KVTIER_ASSERT_OK(backend.Attention({.q = queries,
                                          .spans = &spans,
                                          .span_dtype = DType::kF32,
                                          .tail = tail.layer(0),
                                          .tail_rows = kTailRows,
                                          .scale = config.softmax_scale(),
                                          .out = out}));
      for (uint32_t h = 0; h < config.kv_heads; ++h) {
        // The dense cache of this head, put back together, and which of its rows are kept.
        std::vector<const float*> dense_keys(length), dense_values(length);
        for (const RowSpan& span : whole->spans(LayerIndex(layer), h)) {
          for (uint32_t i = 0; i < span.rows; ++i) {
            dense_keys[span.positions[i]] = reinterpret_cast<const float*>(span.keys) + i * dim;
            dense_values[span.positions[i]] = reinterpret_cast<const float*>(span.values) + i * dim;
          }
        }
        std::vector<bool> is_kept(length);
        for (const RowSpan& span : spans[h]) {
          for (uint32_t i = 0; i < span.rows; ++i) is_kept[span.positions[i]] = true;
        }
        for (int64_t i = 0; i < kQueryRows; ++i) {
          for (int64_t g = 0; g < group; ++g) {
            const int64_t q_at = (i * config.q_heads + h * group + g) * dim;
            const int64_t seen = kTailRows - kQueryRows + i + 1;
            std::vector<double> sum(dim);
            double total = 0;
            const auto add = [&](const float* key, const float* value, bool masked) {
              double logit = masked ? -INFINITY : 0;
              for (int64_t d = 0; d < dim && !masked; ++d) {
                logit += double{config.softmax_scale()} * q[q_at + d] * key[d];
              }
              const double weight = std::exp(logit);
              total += weight;
              for (int64_t d = 0; d < dim; ++d) sum[d] += weight * value[d];
            };
            for (int64_t p = 0; p < length; ++p) add(dense_keys[p], dense_values[p], !is_kept[p]);
            for (int64_t t = 0; t < seen; ++t) {
              const int64_t at = (t * config.kv_heads + h) * dim;
              add(&k[at], &v[at], false);
            }
            for (int64_t d = 0; d < dim; ++d) {
              EXPECT_NEAR(static_cast<const float*>(out.data())[q_at + d], sum[d] / total, 1e-5);
            }
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(CpuBackends, RaggedAttentionTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "cpu" : "reference"; });

}  // namespace
}  // namespace kvtier
