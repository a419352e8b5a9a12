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
#include "tests/testing/forwarding_backend.h"
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

// KVzip's score of one KV head and one chunk (docs/recipes.md, "The definitions"), in double and
// term by term.
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

// Keeps count of the tensors of another backend.
class CountingBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  uint64_t live_bytes() const { return live_bytes_; }
  uint64_t peak_bytes() const { return peak_bytes_; }
  uint64_t allocations() const { return allocations_; }
  void ResetPeak() { peak_bytes_ = live_bytes_; }

  absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) override;

 private:
  struct Held;
  static void Release(void* data, void* context);

  uint64_t live_bytes_ = 0;
  uint64_t peak_bytes_ = 0;
  uint64_t allocations_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_UNIT_COMPRESSOR_COMPRESS_TESTING_H_
