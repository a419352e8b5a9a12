// The checks of every operation's arguments, which all backends share: one derives from it and
// implements the Run* methods, which are called with arguments that fit each other and with at
// least one row (or byte).
#ifndef KVTIER_COMPRESSOR_CHECKED_BACKEND_H_
#define KVTIER_COMPRESSOR_CHECKED_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"

namespace kvtier {

// Thread-safe as Backend says.
class CheckedBackend : public Backend {
 public:
  absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) final;
  absl::Status Upload(std::span<const std::byte> host, TensorView to) final;
  absl::Status Download(TensorView from, std::span<std::byte> host) final;
  absl::StatusOr<std::unique_ptr<LinearWeights>> PrepareLinear(std::span<const std::byte> weights,
                                                               DType dtype, int64_t out_features,
                                                               int64_t in_features) final;
  absl::StatusOr<std::unique_ptr<LinearWeights>> ShareLinear(const TensorView& table) final;
  absl::Status ReadLinear(const LinearWeights& weights, std::span<float> to) final;
  absl::Status Embed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                     TensorView y) final;
  absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) final;
  absl::Status RmsNorm(TensorView x, TensorView weight, float epsilon, TensorView y) final;
  absl::Status AddInPlace(TensorView x, TensorView y) final;
  absl::Status GateMul(Activation activation, TensorView gate, TensorView up, TensorView y) final;
  absl::Status Rope(TensorView x, int64_t heads, const RopeTable& table,
                    int64_t first_position) final;
  absl::Status AppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) final;
  absl::Status Attention(const AttentionArgs& args) final;
  absl::Status ScoreColumnMax(const ScoreArgs& args) final;
  absl::Status GatherRows(const KvLayerView& layer, int64_t head,
                          std::span<const uint32_t> positions, std::byte* keys_out,
                          std::byte* values_out) final;

 protected:
  virtual absl::StatusOr<Tensor> RunAllocate(DType dtype, int64_t rows, int64_t cols) = 0;
  virtual absl::Status RunUpload(std::span<const std::byte> host, void* to) = 0;
  virtual absl::Status RunDownload(const void* from, std::span<std::byte> host) = 0;
  virtual absl::StatusOr<std::unique_ptr<LinearWeights>> RunPrepareLinear(const std::byte* weights,
                                                                          DType dtype,
                                                                          int64_t out_features,
                                                                          int64_t in_features) = 0;
  virtual absl::StatusOr<std::unique_ptr<LinearWeights>> RunShareLinear(
      const TensorView& table) = 0;
  virtual absl::Status RunEmbed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                                TensorView y) = 0;
  // INVALID_ARGUMENT: `weights` were prepared by another backend.
  virtual absl::Status RunReadLinear(const LinearWeights& weights, std::span<float> to) = 0;
  virtual absl::Status RunLinear(TensorView x, const LinearWeights& weights, TensorView y) = 0;
  virtual absl::Status RunRmsNorm(TensorView x, const float* weight, float epsilon,
                                  TensorView y) = 0;
  virtual absl::Status RunAdd(TensorView x, TensorView y) = 0;
  virtual absl::Status RunGateMul(Activation activation, TensorView gate, TensorView up,
                                  TensorView y) = 0;
  virtual absl::Status RunRope(TensorView x, int64_t heads, const RopeTable& table,
                               int64_t first_position) = 0;
  virtual absl::Status RunAppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) = 0;
  virtual absl::Status RunAttention(const AttentionArgs& args) = 0;
  virtual absl::Status RunScoreColumnMax(const ScoreArgs& args) = 0;
  virtual absl::Status RunGatherRows(const KvLayerView& layer, int64_t head,
                                     std::span<const uint32_t> positions, std::byte* keys_out,
                                     std::byte* values_out) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CHECKED_BACKEND_H_
