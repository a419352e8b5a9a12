#include "tests/testing/fake_device_backend.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvcache/row_codec.h"

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
  if (bytes > 0) {
    MutexLock lock(&mutex_);
    tensors_[static_cast<const std::byte*>(data)] = bytes;
  }
  auto* const held = new Held{this, std::move(tensor)};
  return Tensor(data, dtype, rows, cols, &Release, held);
}

void FakeDeviceBackend::Release(void* data, void* context) {
  const std::unique_ptr<Held> held(static_cast<Held*>(context));
  if (held->tensor.bytes() > 0) {
    MutexLock lock(&held->owner->mutex_);
    held->owner->tensors_.erase(static_cast<const std::byte*>(data));
  }
  held->owner->live_bytes_ -= held->tensor.bytes();
}

bool FakeDeviceBackend::Holds(const std::byte* data, uint64_t bytes) {
  MutexLock lock(&mutex_);
  auto tensor = tensors_.upper_bound(data);
  if (data == nullptr || tensor == tensors_.begin()) return false;
  --tensor;
  return bytes <= tensor->second && data - tensor->first <= int64_t(tensor->second - bytes);
}

absl::Status FakeDeviceBackend::Attention(const AttentionArgs& args) {
  const auto head_dim = static_cast<uint32_t>(args.tail.head_dim);
  for (size_t head = 0; args.spans != nullptr && head < args.spans->size(); ++head) {
    for (const RowSpan& span : (*args.spans)[head]) {
      const RowCodec* const codec = FindRowCodec(span.codec);
      const uint64_t row = codec != nullptr ? codec->code_bytes(head_dim)
                                            : uint64_t{head_dim} * DTypeBytes(args.span_dtype);
      const uint64_t scales = codec != nullptr ? span.rows * codec->scale_bytes() : 0;
      if (Holds(span.keys, span.rows * row) && Holds(span.values, span.rows * row) &&
          (codec == nullptr ||
           (Holds(span.key_scales, scales) && Holds(span.value_scales, scales)))) {
        continue;
      }
      return absl::InternalError(absl::StrCat(name_, ": rows of head ", head,
                                              " are not in its memory: an illegal address"));
    }
  }
  return inner().Attention(args);
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
