#include "compressor/value_output_norms.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/bytes.h"
#include "base/status_macros.h"
#include "compressor/activations.h"
#include "compressor/host_backend.h"

namespace kvtier {
namespace {

constexpr float kNormMin = 1e-30f;
// Rows of the cache that are looked at together.
constexpr int64_t kRowsPerStep = 1024;

// W_O^(h,g)^T, [head_dim, hidden], of a whole W_O, [hidden, width].
std::vector<float> HeadColumns(std::span<const float> output, int64_t width, int64_t dim,
                               int64_t q_head) {
  const int64_t hidden = static_cast<int64_t>(output.size()) / width;
  std::vector<float> columns(static_cast<size_t>(dim * hidden));
  for (int64_t i = 0; i < hidden; ++i) {
    const float* row = output.data() + i * width + q_head * dim;
    for (int64_t d = 0; d < dim; ++d) columns[static_cast<size_t>(d * hidden + i)] = row[d];
  }
  return columns;
}

// M = W^T W, [head_dim, head_dim].
absl::StatusOr<std::vector<float>> Gram(Backend& backend, std::span<const float> columns,
                                        int64_t dim) {
  const int64_t hidden = static_cast<int64_t>(columns.size()) / dim;
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<LinearWeights> weights,
      backend.PrepareLinear(AsBytes(columns), DType::kF32, /*out_features=*/dim, hidden));
  const DType dtype = backend.activation_dtype();
  KVTIER_ASSIGN_OR_RETURN(const Tensor x, backend.Allocate(dtype, dim, hidden));
  KVTIER_ASSIGN_OR_RETURN(const Tensor y, backend.Allocate(dtype, dim, dim));
  KVTIER_RETURN_IF_ERROR(UploadFloats(backend, columns, x));
  KVTIER_RETURN_IF_ERROR(backend.Linear(x, *weights, y));
  std::vector<float> gram(static_cast<size_t>(dim * dim));
  KVTIER_RETURN_IF_ERROR(DownloadFloats(backend, y, gram));
  return gram;
}

// One layer's W_O in fp32.
uint64_t OutputBytes(const ModelConfig& config) {
  return uint64_t(config.hidden * config.q_heads * config.head_dim) * sizeof(float);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ValueOutputNorms>> ValueOutputNorms::Create(
    const Model& model, const CancelToken& cancel) {
  const ModelConfig& config = model.config();
  Backend& backend = model.backend();
  const int64_t group = config.q_heads / config.kv_heads;
  const int64_t dim = config.head_dim;
  const int64_t width = config.q_heads * dim;
  KVTIER_ASSIGN_OR_RETURN(
      AlignedBytes memory,
      AlignedBytes::TryAllocate(OutputBytes(config), AlignedBytes::Fill::kUninitialized));
  const std::span<float> output = memory.As<float>();  // [hidden, width] of one layer
  std::unique_ptr<ValueOutputNorms> norms(new ValueOutputNorms(model));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    GroupWeights& heads = norms->layers_.emplace_back();
    if (config.layer_window(layer) > 0) continue;
    KVTIER_RETURN_IF_ERROR(backend.ReadLinear(*model.layer(layer).o, output));
    for (int64_t head = 0; head < config.kv_heads; ++head) {
      std::vector<float> stacked;
      for (int64_t g = 0; g < group; ++g) {
        KVTIER_RETURN_IF_ERROR(cancel.Check());
        KVTIER_ASSIGN_OR_RETURN(
            const std::vector<float> gram,
            Gram(backend, HeadColumns(output, width, dim, head * group + g), dim));
        stacked.insert(stacked.end(), gram.begin(), gram.end());
      }
      KVTIER_ASSIGN_OR_RETURN(heads.emplace_back(),
                              backend.PrepareLinear(AsBytes(std::span<const float>(stacked)),
                                                    DType::kF32, group * dim, dim));
    }
  }
  return norms;
}

uint64_t ValueOutputNorms::EstimateBytes(const ModelConfig& config) {
  int64_t layers = 0;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (config.layer_window(layer) == 0) ++layers;
  }
  return uint64_t(layers * config.q_heads * config.head_dim * config.head_dim) * sizeof(float) +
         OutputBytes(config);
}

absl::Status ValueOutputNorms::LogNorms(int64_t layer, const KvLayerView& cache, int64_t begin,
                                        int64_t end, std::span<float> out) const {
  const ModelConfig& config = model_->config();
  Backend& backend = model_->backend();
  const int64_t dim = config.head_dim;
  const int64_t group = config.q_heads / config.kv_heads;
  const int64_t columns = end - begin;
  if (layer < 0 || layer >= config.layers || config.layer_window(layer) > 0 ||
      cache.kv_heads != config.kv_heads || cache.head_dim != dim || begin < 0 || columns < 0 ||
      end > cache.capacity || static_cast<int64_t>(out.size()) != config.q_heads * columns) {
    return absl::InvalidArgumentError(absl::StrCat("value norms: rows [", begin, ", ", end,
                                                   ") of layer ", layer, " do not fit the model"));
  }
  const int64_t rows_max = std::min(columns, kRowsPerStep);
  if (rows_max == 0) return absl::OkStatus();
  const DType dtype = backend.activation_dtype();
  KVTIER_ASSIGN_OR_RETURN(const Tensor v, backend.Allocate(dtype, rows_max, dim));
  KVTIER_ASSIGN_OR_RETURN(const Tensor mv, backend.Allocate(dtype, rows_max, group * dim));
  std::vector<std::byte> keys(static_cast<size_t>(rows_max * dim) * DTypeBytes(cache.dtype));
  std::vector<std::byte> values(keys.size());
  std::vector<float> value_rows(static_cast<size_t>(rows_max * dim));
  std::vector<float> product(static_cast<size_t>(rows_max * group * dim));
  for (int64_t head = 0; head < config.kv_heads; ++head) {
    for (int64_t at = 0; at < columns; at += rows_max) {
      const int64_t rows = std::min(rows_max, columns - at);
      std::vector<uint32_t> positions(static_cast<size_t>(rows));
      std::iota(positions.begin(), positions.end(), static_cast<uint32_t>(begin + at));
      KVTIER_RETURN_IF_ERROR(
          backend.GatherRows(cache, head, positions, keys.data(), values.data()));
      const std::span<float> some_values =
          std::span(value_rows).first(static_cast<size_t>(rows * dim));
      const std::span<float> some_products =
          std::span(product).first(static_cast<size_t>(rows * group * dim));
      LoadFloats(values.data(), cache.dtype, some_values);
      const TensorView x = TensorView(v).Rows(0, rows);
      const TensorView y = TensorView(mv).Rows(0, rows);
      KVTIER_RETURN_IF_ERROR(UploadFloats(backend, some_values, x));
      KVTIER_RETURN_IF_ERROR(
          backend.Linear(x, *layers_[static_cast<size_t>(layer)][static_cast<size_t>(head)], y));
      KVTIER_RETURN_IF_ERROR(DownloadFloats(backend, y, some_products));
      for (int64_t row = 0; row < rows; ++row) {
        const float* value = some_values.data() + row * dim;
        for (int64_t g = 0; g < group; ++g) {
          const float* m_value = some_products.data() + (row * group + g) * dim;
          double square = 0;
          for (int64_t d = 0; d < dim; ++d) square += double{value[d]} * m_value[d];
          const double norm = std::sqrt(std::max(square, 0.0));  // Rounding may leave it below 0.
          // A NaN passes: the scores will name it.
          out[static_cast<size_t>((head * group + g) * columns + at + row)] =
              static_cast<float>(std::log(norm < kNormMin ? double{kNormMin} : norm));
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<const ValueOutputNorms*> LazyValueOutputNorms::Get(const CancelToken& cancel) const {
  {
    MutexLock lock(&mutex_);
    if (norms_ != nullptr) return norms_.get();
  }
  // Not under the mutex: it takes seconds for a large model.
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<const ValueOutputNorms> made,
                          ValueOutputNorms::Create(*model_, cancel));
  MutexLock lock(&mutex_);
  if (norms_ == nullptr) norms_ = std::move(made);
  return norms_.get();
}

}  // namespace kvtier
