#include "compressor/host_backend.h"

#include <cstring>
#include <utility>

#include "base/aligned_bytes.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_macros.h"

namespace kvtier {

void LoadFloats(const std::byte* from, DType dtype, std::span<float> to) {
  if (dtype == DType::kF32) {
    std::memcpy(to.data(), from, to.size_bytes());
    return;
  }
  for (size_t i = 0; i < to.size(); ++i) {
    const uint16_t bits = LoadLittleEndian<uint16_t>(from + 2 * i);
    to[i] = dtype == DType::kBf16 ? static_cast<float>(bfloat16::FromBits(bits))
                                  : static_cast<float>(float16::FromBits(bits));
  }
}

absl::StatusOr<Tensor> HostBackend::RunAllocate(DType dtype, int64_t rows, int64_t cols) {
  const uint64_t bytes = uint64_t(rows) * uint64_t(cols) * DTypeBytes(dtype);
  KVTIER_ASSIGN_OR_RETURN(AlignedBytes memory,
                          AlignedBytes::TryAllocate(bytes, AlignedBytes::Fill::kUninitialized));
  auto* owner = new AlignedBytes(std::move(memory));
  return Tensor(
      owner->data(), dtype, rows, cols,
      [](void* /*data*/, void* context) { delete static_cast<AlignedBytes*>(context); }, owner);
}

absl::Status HostBackend::RunUpload(std::span<const std::byte> host, void* to) {
  std::memcpy(to, host.data(), host.size());
  return absl::OkStatus();
}

absl::Status HostBackend::RunDownload(const void* from, std::span<std::byte> host) {
  std::memcpy(host.data(), from, host.size());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LinearWeights>> HostBackend::RunShareLinear(
    const TensorView& table) {
  return RunPrepareLinear(static_cast<const std::byte*>(table.data), table.dtype, table.rows,
                          table.cols);
}

absl::Status HostBackend::RunGatherRows(const KvLayerView& layer, int64_t head,
                                        std::span<const uint32_t> positions, std::byte* keys_out,
                                        std::byte* values_out) {
  const uint64_t row_bytes = uint64_t(layer.head_dim) * DTypeBytes(layer.dtype);
  const auto* keys = static_cast<const std::byte*>(layer.keys);
  const auto* values = static_cast<const std::byte*>(layer.values);
  for (size_t i = 0; i < positions.size(); ++i) {
    const uint64_t from = (uint64_t(head) * uint64_t(layer.capacity) + positions[i]) * row_bytes;
    std::memcpy(keys_out + i * row_bytes, keys + from, row_bytes);
    std::memcpy(values_out + i * row_bytes, values + from, row_bytes);
  }
  return absl::OkStatus();
}

}  // namespace kvtier
