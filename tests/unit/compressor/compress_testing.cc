#include "tests/unit/compressor/compress_testing.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/log.h"
#include "compressor/forward.h"
#include "compressor/reference_backend.h"

namespace kvtier {

TestModel MakeTestModel(const TinyModelOptions& options) {
  return MakeTestModel(options, MakeReferenceBackend());
}

TestModel MakeTestModel(const TinyModelOptions& options, std::unique_ptr<Backend> backend) {
  TestModel made;
  made.folder = std::make_unique<TempDir>();
  made.backend = std::move(backend);
  absl::StatusOr<std::string> path = WriteTinyModel(options, made.folder->File("tiny"));
  KVTIER_CHECK_OK(path);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(*path, *made.backend);
  KVTIER_CHECK_OK(model);
  made.model = *std::move(model);
  return made;
}

std::vector<uint32_t> RandomTokens(uint64_t count, uint64_t seed, uint32_t vocabulary) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % vocabulary);
  return tokens;
}

std::shared_ptr<const RaggedCache> PrefixOf(const CompressedObject& object, uint32_t band_count) {
  const uint32_t layers = object.manifest->geometry.layer_count();
  std::vector<SegmentRef> segments(object.segments.begin(),
                                   object.segments.begin() + uint64_t{band_count} * layers);
  absl::StatusOr<std::shared_ptr<const RaggedCache>> cache =
      RaggedCache::Create(object.manifest, band_count,
                          HeadRange{0, object.manifest->geometry.kv_heads}, std::move(segments));
  KVTIER_CHECK_OK(cache);
  return *std::move(cache);
}

CompressedObject CompressForTest(const Model& model, std::span<const uint32_t> context,
                                 PipelineOptions options) {
  const Pipeline pipeline(model, options);
  CompressInput input;
  input.context = context;
  absl::StatusOr<CompressedObject> object = pipeline.Compress(input, nullptr, CancelToken());
  KVTIER_CHECK_OK(object);
  return *std::move(object);
}

std::vector<std::byte> CacheBytes(const DenseCache& cache) {
  std::vector<std::byte> bytes;
  for (uint32_t l = 0; l < cache.geometry().layer_count(); ++l) {
    const KvLayerView layer = cache.layer(l);
    const uint64_t size = layer.kv_heads * layer.capacity * cache.geometry().row_bytes();
    for (const void* data : {layer.keys, layer.values}) {
      const auto* begin = static_cast<const std::byte*>(data);
      bytes.insert(bytes.end(), begin, begin + size);
    }
  }
  return bytes;
}

DenseCache PrefillForTest(const Model& model, std::span<const uint32_t> ids, DType dtype,
                          int64_t extra_rows) {
  absl::StatusOr<DenseCache> cache =
      DenseCache::Create(model.backend(), model.config().MakeGeometry(dtype),
                         static_cast<int64_t>(ids.size()) + extra_rows);
  KVTIER_CHECK_OK(cache);
  absl::StatusOr<ForwardScratch> scratch = ForwardScratch::Create(model, 32);
  KVTIER_CHECK_OK(scratch);
  KVTIER_CHECK_OK(Prefill(model, ids, *cache, *scratch, nullptr));
  return *std::move(cache);
}

std::vector<double> PlainScores(const PlainScoreInput& in) {
  std::vector<double> best(in.chunk_end - in.chunk_begin, -INFINITY);
  const auto dot = [&](int g, int i, const std::function<double(int d)>& key) {
    double sum = 0;
    for (int d = 0; d < in.head_dim; ++d) sum += in.query(g, i, d) * key(d);
    return in.scale * sum;
  };
  for (int g = 0; g < in.group; ++g) {
    for (int i = 0; i < in.rows; ++i) {
      double total = 0;  // Of exp; test inputs are far from its limits.
      std::vector<double> logits;
      const int64_t keys_end = in.full_keys > 0 ? in.full_keys : in.chunk_end;
      for (int64_t j = 0; j < keys_end; ++j) {
        const double logit = dot(g, i, [&](int d) { return in.key(j, d); });
        const bool in_chunk = j >= in.chunk_begin && j < in.chunk_end;
        if (in_chunk) logits.push_back(logit);
        if (in_chunk || j < in.sink_rows || in.full_keys > 0) total += std::exp(logit);
      }
      for (int r = 0; r <= i; ++r) {
        total += std::exp(dot(g, i, [&](int d) { return in.repeat_key(r, d); }));
      }
      for (size_t c = 0; c < best.size(); ++c) {
        best[c] = std::max(best[c], logits[c] - std::log(total));
      }
    }
  }
  return best;
}

struct CountingBackend::Held {
  Tensor tensor;
  CountingBackend* owner;
};

absl::StatusOr<Tensor> CountingBackend::Allocate(DType dtype, int64_t rows, int64_t cols) {
  absl::StatusOr<Tensor> tensor = inner().Allocate(dtype, rows, cols);
  if (!tensor.ok()) return tensor.status();
  live_bytes_ += tensor->bytes();
  peak_bytes_ = std::max(peak_bytes_, live_bytes_);
  ++allocations_;
  void* data = tensor->data();
  return Tensor(data, dtype, rows, cols, &CountingBackend::Release,
                new Held{*std::move(tensor), this});
}

void CountingBackend::Release(void* /*data*/, void* context) {
  const std::unique_ptr<Held> held(static_cast<Held*>(context));
  held->owner->live_bytes_ -= held->tensor.bytes();
}

}  // namespace kvtier
