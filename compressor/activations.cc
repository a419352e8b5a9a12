#include "compressor/activations.h"

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/host_backend.h"

namespace kvtier {

absl::Status DownloadFloats(Backend& backend, TensorView from, std::span<float> to) {
  if (from.dtype == DType::kF32) return backend.Download(from, AsMutableBytes(to));
  std::vector<uint16_t> bits(to.size());
  KVTIER_RETURN_IF_ERROR(backend.Download(from, AsMutableBytes(std::span<uint16_t>(bits))));
  LoadFloats(AsBytes(std::span<const uint16_t>(bits)).data(), from.dtype, to);
  return absl::OkStatus();
}

absl::Status UploadFloats(Backend& backend, std::span<const float> from, TensorView to) {
  if (to.dtype == DType::kF32) return backend.Upload(AsBytes(from), to);
  if (to.dtype == DType::kF16) {
    std::vector<float16> rounded(from.size());
    ConvertFromFloat(from, std::span<float16>(rounded));
    return backend.Upload(AsBytes(std::span<const float16>(rounded)), to);
  }
  std::vector<bfloat16> rounded(from.size());
  ConvertFromFloat(from, std::span<bfloat16>(rounded));
  return backend.Upload(AsBytes(std::span<const bfloat16>(rounded)), to);
}

}  // namespace kvtier
