// A linear layer's weights in device memory: what DeviceBackend makes and products read.
#ifndef KVTIER_CUDA_DEVICE_WEIGHTS_H_
#define KVTIER_CUDA_DEVICE_WEIGHTS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "cuda/device.h"
#include "cuda/launch_params.h"
#include "cuda/plain_gemm.h"

namespace kvtier {

struct DeviceWeights final : LinearWeights {
  int64_t in_features() const override { return in; }
  int64_t out_features() const override { return out; }
  uint64_t bytes() const override {
    return owned.as<void>() == nullptr ? 0 : uint64_t(in) * out * DTypeBytes(dtype);
  }
  int64_t in = 0;
  int64_t out = 0;
  DType dtype = DType::kBf16;
  const void* data = nullptr;  // [out, in]: owned, or a table's rows.
  DeviceMemory owned;
  const Device* device = nullptr;  // Only compared.
};

// INVALID_ARGUMENT: weights of another backend.
inline absl::StatusOr<const DeviceWeights*> WeightsOn(const Device& device,
                                                      const LinearWeights& weights) {
  const auto* w = dynamic_cast<const DeviceWeights*>(&weights);
  if (w == nullptr || w->device != &device) {
    return absl::InvalidArgumentError("linear: weights of another backend");
  }
  return w;
}

// y = x W^T. REQUIRES: shapes that fit.
inline GemmParams MakeGemmParams(const TensorView& x, const DeviceWeights& weights,
                                 const TensorView& y) {
  return {.x = x.data,
          .weights = weights.data,
          .y = y.data,
          .x_type = ElementOf(x.dtype),
          .weights_type = ElementOf(weights.dtype),
          .y_type = ElementOf(y.dtype),
          .rows = x.rows,
          .out = weights.out,
          .in = weights.in};
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_WEIGHTS_H_
