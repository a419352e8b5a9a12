// Owned memory of a fixed size at a 64-byte boundary (a cache line, and the widest vector load).
// Move-only: a copy of a payload is always written out as Copy. Not thread-safe, as a vector is
// not.
//
//   AlignedBytes keys = AlignedBytes::Allocate(rows * head_dim * sizeof(float));
//   std::span<float> values = keys.As<float>();  // [rows, head_dim]
#ifndef KVTIER_BASE_ALIGNED_BYTES_H_
#define KVTIER_BASE_ALIGNED_BYTES_H_

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "absl/status/statusor.h"
#include "base/bytes.h"
#include "base/log.h"

namespace kvtier {

class AlignedBytes {
 public:
  static constexpr size_t kAlignmentBytes = 64;

  enum class Fill { kZero, kUninitialized };

  // Empty.
  AlignedBytes() = default;
  AlignedBytes(AlignedBytes&& other) noexcept
      : data_(std::move(other.data_)), bytes_(std::exchange(other.bytes_, 0)) {}
  AlignedBytes& operator=(AlignedBytes&& other) noexcept {
    data_ = std::move(other.data_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;

  // Dies if there is no memory: for sizes that we chose. Zero bytes give an empty buffer.
  static AlignedBytes Allocate(size_t bytes, Fill fill = Fill::kZero);

  // RESOURCE_EXHAUSTED if there is no memory: for sizes that a request or a file chose (after they
  // have been held against limits.h).
  static absl::StatusOr<AlignedBytes> TryAllocate(size_t bytes, Fill fill = Fill::kZero);

  // A new buffer with the same content. Dies if there is no memory.
  static AlignedBytes Copy(ByteSpan from);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }

  MutableByteSpan span() { return {data_.get(), bytes_}; }
  ByteSpan span() const { return {data_.get(), bytes_}; }

  // Forgets what lies past `bytes`; the memory stays with the buffer. REQUIRES: bytes <= size().
  void Truncate(size_t bytes) {
    KVTIER_CHECK_LE(bytes, bytes_);
    bytes_ = bytes;
  }

  // The buffer as an array. REQUIRES: size() is a multiple of sizeof(T).
  template <typename T>
  std::span<T> As() {
    CheckElement<T>();
    return {reinterpret_cast<T*>(data_.get()), bytes_ / sizeof(T)};
  }
  template <typename T>
  std::span<const T> As() const {
    CheckElement<T>();
    return {reinterpret_cast<const T*>(data_.get()), bytes_ / sizeof(T)};
  }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };

  template <typename T>
  void CheckElement() const {
    static_assert(std::is_trivially_copyable_v<T>, "bytes become a T without construction");
    static_assert(alignof(T) <= kAlignmentBytes);
    KVTIER_CHECK_EQ(bytes_ % sizeof(T), 0u) << "buffer of " << bytes_ << " bytes";
  }

  std::unique_ptr<std::byte, Free> data_;
  size_t bytes_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_BASE_ALIGNED_BYTES_H_
