#include "compressor/cpu_backend.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/cpu_attention.h"
#include "compressor/cpu_kernels.h"
#include "compressor/cpu_score.h"
#include "compressor/cpu_table_linear.h"
#include "compressor/cpu_tiles.h"
#include "compressor/host_backend.h"
#include "compressor/onednn_linear.h"
#include "compressor/scratch_pool.h"
#include "compressor/thread_pool.h"

namespace kvtier {
namespace {

// Elements of an elementwise operation per task.
constexpr int64_t kElementsPerTask = 1 << 15;

float* Row(const TensorView& view, int64_t row) {
  return static_cast<float*>(view.data) + row * view.cols;
}

class CpuBackend final : public HostBackend {
 public:
  // `bf16_products`: null for fp32 everywhere.
  CpuBackend(int threads, const CpuKernels& kernels, const CpuKernels* bf16_products)
      : pool_(threads), kernels_(kernels), bf16_products_(bf16_products) {}

  absl::string_view name() const override { return "cpu"; }

 protected:
  absl::StatusOr<std::unique_ptr<LinearWeights>> RunPrepareLinear(const std::byte* weights,
                                                                  DType dtype, int64_t out_features,
                                                                  int64_t in_features) override {
    const DType compute =
        bf16_products_ != nullptr && dtype == DType::kBf16 ? DType::kBf16 : DType::kF32;
    return PackOnednnLinear(weights, dtype, compute, out_features, in_features, pool_, scratch_);
  }

  absl::StatusOr<std::unique_ptr<LinearWeights>> RunShareLinear(const TensorView& table) override {
    return ShareCpuTable(table);
  }

  absl::Status RunReadLinear(const LinearWeights& weights, std::span<float> to) override {
    if (!IsCpuTable(weights)) return ReadOnednnLinear(weights, to);
    ReadCpuTable(weights, to);
    return absl::OkStatus();
  }

  absl::Status RunLinear(TensorView x, const LinearWeights& weights, TensorView y) override {
    if (IsCpuTable(weights)) return RunCpuTable(x, weights, y, Resources());
    KVTIER_ASSIGN_OR_RETURN(const DType input, OnednnInputDtype(weights));
    if (input == DType::kF32) return RunOnednnLinear(x, weights, y);
    ScratchPool::Lease rounded = scratch_.Borrow(DivideUp(x.rows * x.cols, 2));
    if (rounded.data() == nullptr) {
      return absl::ResourceExhaustedError("linear: no memory for scratch");
    }
    auto* const to = reinterpret_cast<uint16_t*>(rounded.data());
    ForRows(x.rows, x.cols,
            [&](int64_t row) { kernels_.to_bf16(Row(x, row), x.cols, to + row * x.cols); });
    TensorView from = x;
    from.data = to;
    from.dtype = DType::kBf16;
    return RunOnednnLinear(from, weights, y);
  }

  absl::Status RunEmbed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                        TensorView y) override {
    const auto* rows = static_cast<const std::byte*>(table.data);
    for (size_t i = 0; i < ids.size(); ++i) {
      kernels_.load(rows + int64_t{ids[i]} * table.cols * DTypeBytes(table.dtype),
                    ElementOf(table.dtype), table.cols, Row(y, static_cast<int64_t>(i)));
      if (scale == 1) continue;
      float* row = Row(y, static_cast<int64_t>(i));
      for (int64_t c = 0; c < table.cols; ++c) row[c] *= scale;
    }
    return absl::OkStatus();
  }

  absl::Status RunRmsNorm(TensorView x, const float* weight, float epsilon, TensorView y) override {
    ForRows(x.rows, x.cols, [&](int64_t row) {
      kernels_.rms_norm(Row(x, row), weight, x.cols, epsilon, Row(y, row));
    });
    return absl::OkStatus();
  }

  absl::Status RunAdd(TensorView x, TensorView y) override {
    ForRows(x.rows, x.cols, [&](int64_t row) {
      float* to = Row(x, row);
      const float* from = Row(y, y.rows == 1 ? 0 : row);
      for (int64_t i = 0; i < x.cols; ++i) to[i] += from[i];
    });
    return absl::OkStatus();
  }

  absl::Status RunGateMul(Activation activation, TensorView gate, TensorView up,
                          TensorView y) override {
    const auto kernel =
        activation == Activation::kSilu ? kernels_.silu_mul : kernels_.gelu_tanh_mul;
    ForRows(gate.rows, gate.cols,
            [&](int64_t row) { kernel(Row(gate, row), Row(up, row), gate.cols, Row(y, row)); });
    return absl::OkStatus();
  }

  // Angles, sines and cosines in fp32, as the model was trained.
  absl::Status RunRope(TensorView x, int64_t heads, const RopeTable& table,
                       int64_t first_position) override {
    const int64_t half = static_cast<int64_t>(table.inverse_frequencies.size());
    ForRows(x.rows, 8 * x.cols, [&](int64_t row) {
      float cosines[limits::kHeadDimMax / 2];
      float sines[limits::kHeadDimMax / 2];
      for (int64_t d = 0; d < half; ++d) {
        const float angle = static_cast<float>(first_position + row) * table.inverse_frequencies[d];
        cosines[d] = std::cos(angle) * table.attention_scaling;
        sines[d] = std::sin(angle) * table.attention_scaling;
      }
      for (int64_t h = 0; h < heads; ++h) {
        float* a = Row(x, row) + h * 2 * half;
        float* b = a + half;
        for (int64_t d = 0; d < half; ++d) {
          const float turned = a[d] * cosines[d] - b[d] * sines[d];
          b[d] = b[d] * cosines[d] + a[d] * sines[d];
          a[d] = turned;
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status RunAppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) override {
    const int64_t dim = layer.head_dim;
    ForRows(k.rows, 2 * k.cols, [&](int64_t row) {
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        const int64_t to = (h * layer.capacity + at + row) * dim;
        Store(Row(k, row) + h * dim, dim, layer.dtype, layer.keys, to);
        Store(Row(v, row) + h * dim, dim, layer.dtype, layer.values, to);
      }
    });
    return absl::OkStatus();
  }

  absl::Status RunAttention(const AttentionArgs& args) override {
    return RunCpuAttention(args, Resources());
  }

  absl::Status RunScoreColumnMax(const ScoreArgs& args) override {
    return RunCpuScore(args, Resources());
  }

 private:
  // run(row) for every row, `cost` elements each.
  template <typename Run>
  void ForRows(int64_t rows, int64_t cost, Run run) {
    const int64_t step = std::max<int64_t>(1, kElementsPerTask / cost);
    pool_.For(DivideUp(rows, step), [&](int64_t task) {
      const int64_t end = std::min(rows, (task + 1) * step);
      for (int64_t row = task * step; row < end; ++row) run(row);
    });
  }

  CpuResources Resources() {
    return {
        .pool = pool_, .scratch = scratch_, .kernels = kernels_, .bf16_products = bf16_products_};
  }

  static void Store(const float* from, int64_t count, DType dtype, void* to, int64_t at) {
    const size_t size = static_cast<size_t>(count);
    const std::span<const float> values(from, size);
    if (dtype == DType::kF32) {
      std::copy(from, from + count, static_cast<float*>(to) + at);
    } else if (dtype == DType::kF16) {
      ConvertFromFloat(values, std::span<float16>(static_cast<float16*>(to) + at, size));
    } else {
      ConvertFromFloat(values, std::span<bfloat16>(static_cast<bfloat16*>(to) + at, size));
    }
  }

  ThreadPool pool_;
  ScratchPool scratch_;
  const CpuKernels& kernels_;
  const CpuKernels* const bf16_products_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(CpuBackendOptions options) {
  const CpuKernels* chosen = options.kernels.empty() ? &BestCpuKernels() : nullptr;
  for (const CpuKernels* kernels : {Avx512Kernels(), Avx2Kernels(), BaselineKernels()}) {
    if (kernels != nullptr && options.kernels == kernels->name) chosen = kernels;
  }
  // Narrower kernels are asked for to see what a lesser machine would compute.
  const bool best = chosen != nullptr && chosen == Avx512Kernels() && OnednnHasBf16Products();
  const CpuKernels* bf16 = best ? Avx512Bf16Kernels() : nullptr;
  if (chosen == nullptr || (options.compute == CpuCompute::kBf16 && bf16 == nullptr)) {
    return nullptr;
  }
  return std::make_unique<CpuBackend>(options.threads, *chosen,
                                      options.compute == CpuCompute::kF32 ? nullptr : bf16);
}

}  // namespace kvtier
