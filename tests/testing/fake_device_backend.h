// A backend that plays a GPU: it computes like the reference backend, has a name and a memory of
// its own size, says that the host cannot read its tensors (it could), and counts what crosses over
// and what is held. Thread-safe.
#ifndef KVTIER_TESTS_TESTING_FAKE_DEVICE_BACKEND_H_
#define KVTIER_TESTS_TESTING_FAKE_DEVICE_BACKEND_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "compressor/backend.h"
#include "compressor/reference_backend.h"

namespace kvtier {

class FakeDeviceBackend final : public Backend {
 public:
  explicit FakeDeviceBackend(std::string name,
                             uint64_t memory_bytes = std::numeric_limits<uint64_t>::max())
      : name_(std::move(name)), memory_bytes_(memory_bytes), inner_(MakeReferenceBackend()) {}
  // REQUIRES: every tensor is gone.
  ~FakeDeviceBackend() override = default;

  uint64_t live_bytes() const { return live_bytes_.load(); }
  uint64_t uploaded_bytes() const { return uploaded_bytes_.load(); }
  uint64_t downloaded_bytes() const { return downloaded_bytes_.load(); }
  // From now on uploads fail like those of a device that is lost.
  void Break() { broken_ = true; }

  absl::string_view name() const override { return name_; }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) override;
  absl::Status Upload(std::span<const std::byte> host, TensorView to) override;
  absl::Status Download(TensorView from, std::span<std::byte> host) override;
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  bool host_addressable() const override { return false; }
  absl::StatusOr<std::unique_ptr<LinearWeights>> PrepareLinear(std::span<const std::byte> weights,
                                                               DType dtype, int64_t out_features,
                                                               int64_t in_features) override {
    uploaded_bytes_ += weights.size();
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

  const std::string name_;
  const uint64_t memory_bytes_;
  const std::unique_ptr<Backend> inner_;
  std::atomic<uint64_t> live_bytes_{0};
  std::atomic<uint64_t> uploaded_bytes_{0};
  std::atomic<uint64_t> downloaded_bytes_{0};
  std::atomic<bool> broken_{false};
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_FAKE_DEVICE_BACKEND_H_
