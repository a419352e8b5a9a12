#include "cuda/device_backend.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/checked_backend.h"
#include "cuda/counted_attention.h"
#include "cuda/device_attention.h"
#include "cuda/device_decode_step.h"
#include "cuda/device_packer.h"
#include "cuda/device_scores.h"
#include "cuda/device_weights.h"
#include "cuda/elementwise.h"
#include "cuda/launch_params.h"

namespace kvtier {
namespace {

class DeviceBackend final : public CheckedBackend {
 public:
  DeviceBackend(std::shared_ptr<Device> device, std::unique_ptr<Gemm> gemm, DType activations,
                std::unique_ptr<FusedAttention> fused)
      : device_(std::move(device)),
        gemm_(std::move(gemm)),
        fused_(fused == nullptr ? nullptr : std::make_unique<CountedAttention>(std::move(fused))),
        activations_(activations),
        packer_(MakeDevicePacker(device_)),
        steps_(MakeDeviceDecodeSteps(device_, *gemm_, activations)) {}

  absl::string_view name() const override { return device_->name(); }
  DType activation_dtype() const override { return activations_; }
  bool host_addressable() const override { return false; }
  int64_t CacheRows(int64_t rows) const override {
    return fused_ == nullptr ? rows : fused_->CacheRows(rows);
  }
  std::shared_ptr<const LibraryCounters> library_counters() const override {
    return fused_ == nullptr ? nullptr : fused_->counters();
  }
  absl::StatusOr<std::unique_ptr<BackendScores>> MakeScores(const ScoreShape& shape) override {
    return MakeDeviceScores(device_, shape);
  }
  Packer* packer() override { return packer_.get(); }
  DecodeSteps* decode_steps() override { return steps_.get(); }
  absl::Status Synchronize() override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return device_->Synchronize();
  }

 protected:
  absl::StatusOr<Tensor> RunAllocate(DType dtype, int64_t rows, int64_t cols) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    const uint64_t bytes = uint64_t(rows) * uint64_t(cols) * DTypeBytes(dtype);
    KVTIER_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(device_, bytes));
    if (fused_ != nullptr) KVTIER_RETURN_IF_ERROR(device_->Zero(memory.as<void>(), bytes));
    auto* owner = new DeviceMemory(std::move(memory));
    return Tensor(
        owner->as<void>(), dtype, rows, cols,
        [](void* /*data*/, void* context) { delete static_cast<DeviceMemory*>(context); }, owner);
  }

  absl::Status RunUpload(std::span<const std::byte> host, void* to) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return device_->CopyIn(host.data(), to, host.size());
  }

  absl::Status RunDownload(const void* from, std::span<std::byte> host) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return device_->CopyOut(from, host.data(), host.size());
  }

  absl::StatusOr<std::unique_ptr<LinearWeights>> RunPrepareLinear(const std::byte* weights,
                                                                  DType dtype, int64_t out_features,
                                                                  int64_t in_features) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    const int64_t count = out_features * in_features;
    const std::span<const std::byte> bytes(weights, uint64_t(count) * DTypeBytes(dtype));
    KVTIER_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Of(device_, bytes));
    if (dtype != activations_) {
      KVTIER_ASSIGN_OR_RETURN(
          DeviceMemory converted,
          DeviceMemory::Allocate(device_, uint64_t(count) * DTypeBytes(activations_)));
      KVTIER_RETURN_IF_ERROR(
          Convert(memory.as<void>(), dtype, converted.as<void>(), activations_, count));
      memory = std::move(converted);
    }
    auto result = std::make_unique<DeviceWeights>();
    result->in = in_features;
    result->out = out_features;
    result->dtype = activations_;
    result->data = memory.as<void>();
    result->owned = std::move(memory);
    result->device = device_.get();
    return std::unique_ptr<LinearWeights>(std::move(result));
  }

  absl::StatusOr<std::unique_ptr<LinearWeights>> RunShareLinear(const TensorView& table) override {
    auto result = std::make_unique<DeviceWeights>();
    result->in = table.cols;
    result->out = table.rows;
    result->dtype = table.dtype;
    result->data = table.data;
    result->device = device_.get();
    return std::unique_ptr<LinearWeights>(std::move(result));
  }

  absl::Status RunReadLinear(const LinearWeights& weights, std::span<float> to) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_ASSIGN_OR_RETURN(const DeviceWeights* w, WeightsOn(*device_, weights));
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory floats,
                            DeviceMemory::Allocate(device_, to.size_bytes()));
    KVTIER_RETURN_IF_ERROR(Convert(w->data, w->dtype, floats.as<void>(), DType::kF32,
                                   static_cast<int64_t>(to.size())));
    return device_->CopyOut(floats.as<void>(), to.data(), to.size_bytes());
  }

  absl::Status RunEmbed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                        TensorView y) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory on_device, DeviceMemory::Of(device_, ids));
    return Check(LaunchEmbed({.ids = on_device.as<uint32_t>(),
                              .table = table.data,
                              .table_type = ElementOf(table.dtype),
                              .scale = scale,
                              .y = y.data,
                              .type = ElementOf(y.dtype),
                              .rows = y.rows,
                              .cols = y.cols},
                             device_->stream()),
                 "embed");
  }

  absl::Status RunLinear(TensorView x, const LinearWeights& weights, TensorView y) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_ASSIGN_OR_RETURN(const DeviceWeights* w, WeightsOn(*device_, weights));
    return gemm_->Run(MakeGemmParams(x, *w, y));
  }

  absl::Status RunRmsNorm(TensorView x, const float* weight, float epsilon, TensorView y) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return Check(LaunchRmsNorm({.x = x.data,
                                .weight = weight,
                                .epsilon = epsilon,
                                .y = y.data,
                                .type = ElementOf(x.dtype),
                                .rows = x.rows,
                                .cols = x.cols},
                               device_->stream()),
                 "rms norm");
  }

  absl::Status RunAdd(TensorView x, TensorView y) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return Check(LaunchAdd({.x = x.data,
                            .y = y.data,
                            .one_row = y.rows == 1,
                            .type = ElementOf(x.dtype),
                            .rows = x.rows,
                            .cols = x.cols},
                           device_->stream()),
                 "add");
  }

  absl::Status RunGateMul(Activation activation, TensorView gate, TensorView up,
                          TensorView y) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return Check(LaunchGateMul({.gate = gate.data,
                                .up = up.data,
                                .y = y.data,
                                .gelu = activation == Activation::kGeluTanh,
                                .type = ElementOf(gate.dtype),
                                .count = gate.rows * gate.cols},
                               device_->stream()),
                 "gate");
  }

  absl::Status RunRope(TensorView x, int64_t heads, const RopeTable& table,
                       int64_t first_position) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    RopeParams params = MakeRopeParams(x, heads, table);
    params.first_position = first_position;
    return Check(LaunchRope(params, device_->stream()), "rope");
  }

  absl::Status RunAppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    AppendKvParams params = MakeAppendKvParams(k, v, layer);
    params.at = at;
    return Check(LaunchAppendKv(params, device_->stream()), "append");
  }

  absl::Status RunAttention(const AttentionArgs& args) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return RunDeviceAttention(args, device_, fused_.get());
  }

  absl::Status RunScoreColumnMax(const ScoreArgs& args) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return RunDeviceScore(args, device_);
  }

  absl::Status RunGatherRows(const KvLayerView& layer, int64_t head,
                             std::span<const uint32_t> positions, std::byte* keys_out,
                             std::byte* values_out) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    const int64_t row_bytes = layer.head_dim * DTypeBytes(layer.dtype);
    const uint64_t bytes = positions.size() * uint64_t(row_bytes);
    const int64_t first = head * layer.capacity * row_bytes;
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory on_device, DeviceMemory::Of(device_, positions));
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory keys, DeviceMemory::Allocate(device_, bytes));
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory values, DeviceMemory::Allocate(device_, bytes));
    KVTIER_RETURN_IF_ERROR(
        Check(LaunchGatherRows({.keys = static_cast<std::byte*>(layer.keys) + first,
                                .values = static_cast<std::byte*>(layer.values) + first,
                                .positions = on_device.as<uint32_t>(),
                                .keys_out = keys.as<void>(),
                                .values_out = values.as<void>(),
                                .rows = static_cast<int64_t>(positions.size()),
                                .row_bytes = row_bytes},
                               device_->stream()),
              "gather"));
    KVTIER_RETURN_IF_ERROR(device_->CopyOut(keys.as<void>(), keys_out, bytes));
    return device_->CopyOut(values.as<void>(), values_out, bytes);
  }

 private:
  absl::Status Check(DeviceError error, absl::string_view operation) {
    return device_->Check(error, operation);
  }

  absl::Status Convert(const void* from, DType from_type, void* to, DType to_type, int64_t count) {
    return Check(LaunchConvert({.from = from,
                                .from_type = ElementOf(from_type),
                                .to = to,
                                .to_type = ElementOf(to_type),
                                .count = count},
                               device_->stream()),
                 "convert");
  }

  const std::shared_ptr<Device> device_;
  const std::unique_ptr<Gemm> gemm_;
  const std::unique_ptr<CountedAttention> fused_;  // May be null.
  const DType activations_;
  const std::unique_ptr<Packer> packer_;
  const std::unique_ptr<DecodeSteps> steps_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeDeviceBackend(std::shared_ptr<Device> device,
                                                           std::unique_ptr<Gemm> gemm,
                                                           DType activations,
                                                           std::unique_ptr<FusedAttention> fused) {
  if (activations == DType::kF16) {
    return absl::InvalidArgumentError("activations on a device are bf16 or f32, not f16");
  }
  return std::make_unique<DeviceBackend>(std::move(device), std::move(gemm), activations,
                                         std::move(fused));
}

}  // namespace kvtier
