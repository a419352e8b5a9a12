// What the two CPU backends share: host memory, and operations that are done when they return. A
// backend of host memory derives from it and implements the Run* methods of arithmetic.
#ifndef KVTIER_COMPRESSOR_HOST_BACKEND_H_
#define KVTIER_COMPRESSOR_HOST_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/checked_backend.h"

namespace kvtier {

// Activations are fp32. Operations are synchronous. Thread-safe as Backend says.
class HostBackend : public CheckedBackend {
 public:
  DType activation_dtype() const final { return DType::kF32; }
  absl::Status Synchronize() final { return absl::OkStatus(); }
  bool host_addressable() const final { return true; }
  absl::StatusOr<std::unique_ptr<BackendScores>> MakeScores(const ScoreShape& shape) final {
    return MakeHostScores(shape);
  }

 protected:
  absl::StatusOr<Tensor> RunAllocate(DType dtype, int64_t rows, int64_t cols) final;
  absl::Status RunUpload(std::span<const std::byte> host, void* to) final;
  absl::Status RunDownload(const void* from, std::span<std::byte> host) final;
  // Copies, unless a backend knows better.
  absl::StatusOr<std::unique_ptr<LinearWeights>> RunShareLinear(const TensorView& table) override;
  absl::Status RunGatherRows(const KvLayerView& layer, int64_t head,
                             std::span<const uint32_t> positions, std::byte* keys_out,
                             std::byte* values_out) final;
};

// Elements of checkpoints and caches, wherever they lie: `from` need not be aligned.
// REQUIRES: to.size() elements of `dtype` at `from`.
void LoadFloats(const std::byte* from, DType dtype, std::span<float> to);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_HOST_BACKEND_H_
