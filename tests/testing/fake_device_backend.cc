#include "tests/testing/fake_device_backend.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {

struct FakeDeviceBackend::Held {
  FakeDeviceBackend* owner;
  Tensor tensor;
};

absl::StatusOr<Tensor> FakeDeviceBackend::Allocate(DType dtype, int64_t rows, int64_t cols) {
  KVTIER_ASSIGN_OR_RETURN(Tensor tensor, inner().Allocate(dtype, rows, cols));
  const uint64_t bytes = tensor.bytes();
  if (live_bytes_.fetch_add(bytes) + bytes > memory_bytes_) {
    live_bytes_ -= bytes;
    return absl::ResourceExhaustedError(
        absl::StrCat(name_, ": ", bytes, " bytes do not fit into its memory"));
  }
  void* const data = tensor.data();
  auto* const held = new Held{this, std::move(tensor)};
  return Tensor(data, dtype, rows, cols, &Release, held);
}

void FakeDeviceBackend::Release(void* /*data*/, void* context) {
  const std::unique_ptr<Held> held(static_cast<Held*>(context));
  held->owner->live_bytes_ -= held->tensor.bytes();
}

absl::Status FakeDeviceBackend::Upload(std::span<const std::byte> host, TensorView to) {
  if (broken_) return absl::InternalError(absl::StrCat(name_, ": the device is lost"));
  uploaded_bytes_ += host.size();
  return inner().Upload(host, to);
}

absl::Status FakeDeviceBackend::Download(TensorView from, std::span<std::byte> host) {
  downloaded_bytes_ += host.size();
  return inner().Download(from, host);
}

}  // namespace kvtier
