#include "base/aligned_bytes.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvtier {

AlignedBytes AlignedBytes::Allocate(size_t bytes, Fill fill) {
  absl::StatusOr<AlignedBytes> buffer = TryAllocate(bytes, fill);
  KVTIER_CHECK_OK(buffer);
  return *std::move(buffer);
}

absl::StatusOr<AlignedBytes> AlignedBytes::TryAllocate(size_t bytes, Fill fill) {
  AlignedBytes result;
  if (bytes == 0) return result;
  void* data = nullptr;
  // Past this no array can exist, and sanitizers abort on the attempt.
  if (bytes <= static_cast<size_t>(std::numeric_limits<ptrdiff_t>::max())) {
    data = ::operator new (bytes, std::align_val_t{kAlignmentBytes}, std::nothrow);
  }
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes"));
  }
  if (fill == Fill::kZero) std::memset(data, 0, bytes);
  result.data_.reset(static_cast<std::byte*>(data));
  result.bytes_ = bytes;
  return result;
}

AlignedBytes AlignedBytes::Copy(ByteSpan from) {
  AlignedBytes result = Allocate(from.size(), Fill::kUninitialized);
  std::ranges::copy(from, result.data());
  return result;
}

void AlignedBytes::Free::operator()(std::byte* data) const {
  ::operator delete (data, std::align_val_t{kAlignmentBytes});
}

}  // namespace kvtier
