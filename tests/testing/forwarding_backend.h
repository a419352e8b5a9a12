// A backend that hands every call to another one: what backends of tests, which count or refuse a
// few of them, derive from. Thread-safe as the other one is.
#ifndef KVTIER_TESTS_TESTING_FORWARDING_BACKEND_H_
#define KVTIER_TESTS_TESTING_FORWARDING_BACKEND_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "compressor/backend.h"

namespace kvtier {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  absl::string_view name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) override {
    return inner_->Allocate(dtype, rows, cols);
  }
  absl::Status Upload(std::span<const std::byte> host, TensorView to) override {
    return inner_->Upload(host, to);
  }
  absl::Status Download(TensorView from, std::span<std::byte> host) override {
    return inner_->Download(from, host);
  }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  bool host_addressable() const override { return inner_->host_addressable(); }
  int64_t CacheRows(int64_t rows) const override { return inner_->CacheRows(rows); }
  std::shared_ptr<const LibraryCounters> library_counters() const override {
    return inner_->library_counters();
  }
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
  absl::StatusOr<std::unique_ptr<BackendScores>> MakeScores(const ScoreShape& shape) override {
    return inner_->MakeScores(shape);
  }
  absl::Status GatherRows(const KvLayerView& layer, int64_t head,
                          std::span<const uint32_t> positions, std::byte* keys_out,
                          std::byte* values_out) override {
    return inner_->GatherRows(layer, head, positions, keys_out, values_out);
  }
  Packer* packer() override { return inner_->packer(); }
  DecodeSteps* decode_steps() override { return inner_->decode_steps(); }

 protected:
  Backend& inner() { return *inner_; }

 private:
  const std::unique_ptr<Backend> inner_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_FORWARDING_BACKEND_H_
