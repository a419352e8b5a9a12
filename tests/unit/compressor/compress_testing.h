// What the tests of scoring, packing, pipeline and decoder share: a tiny model on a backend, dense
// and ragged ways to ask it, and KVzip's score written down once more.
#ifndef KVTIER_TESTS_UNIT_COMPRESSOR_COMPRESS_TESTING_H_
#define KVTIER_TESTS_UNIT_COMPRESSOR_COMPRESS_TESTING_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "compressor/backend.h"
#include "compressor/dense_cache.h"
#include "compressor/model.h"
#include "compressor/pipeline.h"
#include "kvcache/compressed_object.h"
#include "kvcache/ragged_view.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {

// Dies if it cannot be made.
struct TestModel {
  std::unique_ptr<TempDir> folder;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};
TestModel MakeTestModel(const TinyModelOptions& options = {});
TestModel MakeTestModel(const TinyModelOptions& options, std::unique_ptr<Backend> backend);

std::vector<uint32_t> RandomTokens(uint64_t count, uint64_t seed, uint32_t vocabulary = 256);

// Bands [0, band_count) of an object, all heads.
std::shared_ptr<const RaggedCache> PrefixOf(const CompressedObject& object, uint32_t band_count);

// An object of fp32 rows, and the bytes of everything in a cache.
CompressedObject CompressForTest(const Model& model, std::span<const uint32_t> context,
                                 PipelineOptions options = {.kv_dtype = DType::kF32});
std::vector<std::byte> CacheBytes(const DenseCache& cache);

// system ++ context in a cache that has no room for more.
DenseCache PrefillForTest(const Model& model, std::span<const uint32_t> ids, DType dtype,
                          int64_t extra_rows = 0);

// KVzip's score of one KV head and one chunk (kvzip.md section 3), in double and term by term.
struct PlainScoreInput {
  int group = 0;          // G
  int head_dim = 0;       // D
  int rows = 0;           // q
  int64_t sink_rows = 0;  // n_s
  int64_t chunk_begin = 0;
  int64_t chunk_end = 0;
  double scale = 0;
  std::function<double(int g, int i, int d)> query;
  std::function<double(int64_t j, int d)> key;
  std::function<double(int i, int d)> repeat_key;
  // The denominator runs over [0, keys_end) of the cache instead of {sinks, chunk}: the recipe
  // full-softmax. 0: chunk-local.
  int64_t full_keys = 0;
};
// Log scores of [chunk_begin, chunk_end).
std::vector<double> PlainScores(const PlainScoreInput& input);

// Forwards everything to another backend and keeps count of its tensors.
class CountingBackend : public Backend {
 public:
  explicit CountingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  uint64_t live_bytes() const { return live_bytes_; }
  uint64_t peak_bytes() const { return peak_bytes_; }
  uint64_t allocations() const { return allocations_; }
  void ResetPeak() { peak_bytes_ = live_bytes_; }

  absl::string_view name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) override;
  absl::Status Upload(std::span<const std::byte> host, TensorView to) override {
    return inner_->Upload(host, to);
  }
  absl::Status Download(TensorView from, std::span<std::byte> host) override {
    return inner_->Download(from, host);
  }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  bool host_addressable() const override { return inner_->host_addressable(); }
  absl::StatusOr<std::unique_ptr<LinearWeights>> PrepareLinear(std::span<const std::byte> weights,
                                                               DType dtype, int64_t out_features,
                                                               int64_t in_features) override {
    return inner_->PrepareLinear(weights, dtype, out_features, in_features);
  }
  absl::StatusOr<std::unique_ptr<LinearWeights>> ShareLinear(const TensorView& table) override {
    return inner_->ShareLinear(table);
  }
  absl::Status ReadLinear(const LinearWeights& weights, std::span<float> to) override {
    return inner_->ReadLinear(weights, to);
  }
  absl::Status Embed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                     TensorView y) override {
    return inner_->Embed(ids, table, scale, y);
  }
  absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) override {
    return inner_->Linear(x, weights, y);
  }
  absl::Status RmsNorm(TensorView x, TensorView weight, float epsilon, TensorView y) override {
    return inner_->RmsNorm(x, weight, epsilon, y);
  }
  absl::Status AddInPlace(TensorView x, TensorView y) override { return inner_->AddInPlace(x, y); }
  absl::Status GateMul(Activation activation, TensorView gate, TensorView up,
                       TensorView y) override {
    return inner_->GateMul(activation, gate, up, y);
  }
  absl::Status Rope(TensorView x, int64_t heads, const RopeTable& table,
                    int64_t first_position) override {
    return inner_->Rope(x, heads, table, first_position);
  }
  absl::Status AppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) override {
    return inner_->AppendKv(k, v, layer, at);
  }
  absl::Status Attention(const AttentionArgs& args) override { return inner_->Attention(args); }
  absl::Status ScoreColumnMax(const ScoreArgs& args) override {
    return inner_->ScoreColumnMax(args);
  }
  absl::Status GatherRows(const KvLayerView& layer, int64_t head,
                          std::span<const uint32_t> positions, std::byte* keys_out,
                          std::byte* values_out) override {
    return inner_->GatherRows(layer, head, positions, keys_out, values_out);
  }

 private:
  struct Held;
  static void Release(void* data, void* context);

  std::unique_ptr<Backend> inner_;
  uint64_t live_bytes_ = 0;
  uint64_t peak_bytes_ = 0;
  uint64_t allocations_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_UNIT_COMPRESSOR_COMPRESS_TESTING_H_
