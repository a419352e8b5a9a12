// Bytes as spans, and the little-endian writer and reader of every disk and wire format of ours.
//
// ByteWriter appends to a buffer that the caller owns. ByteReader walks a span that it does not own
// and checks each read against the bytes that remain, before anything is allocated: it is safe on
// hostile input. Every parse failure is INVALID_ARGUMENT; a caller that knows that the bytes were
// ours (read back from disk) turns it into DATA_LOSS. Neither is thread-safe; both are cheap.
//
//   std::string out;
//   ByteWriter writer(&out);
//   writer.WriteU32(7);
//   ByteReader reader(AsBytes(out));
//   KVTIER_ASSIGN_OR_RETURN(const uint32_t seven, reader.ReadU32());
//   KVTIER_RETURN_IF_ERROR(reader.ExpectEnd());
#ifndef KVTIER_BASE_BYTES_H_
#define KVTIER_BASE_BYTES_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

// The bytes of a text, in place.
inline ByteSpan AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// The bytes of an array of plain values, in place (in the byte order of this machine).
template <typename T, size_t kExtent>
requires std::is_trivially_copyable_v<T> ByteSpan AsBytes(std::span<T, kExtent> values) {
  return {reinterpret_cast<const std::byte*>(values.data()), values.size_bytes()};
}
template <typename T, size_t kExtent>
requires(std::is_trivially_copyable_v<T> && !std::is_const_v<T>) MutableByteSpan
    AsMutableBytes(std::span<T, kExtent> values) {
  return {reinterpret_cast<std::byte*>(values.data()), values.size_bytes()};
}
inline MutableByteSpan AsMutableBytes(std::string& text) {
  return {reinterpret_cast<std::byte*>(text.data()), text.size()};
}

// The same bytes seen as text (in place), or copied into a string or a vector.
inline absl::string_view AsStringView(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::string ToString(ByteSpan bytes) { return std::string(AsStringView(bytes)); }
inline std::vector<std::byte> ToVector(ByteSpan bytes) { return {bytes.begin(), bytes.end()}; }

// The segment formats store arrays in the byte order of the machine, which must be this one.
static_assert(std::endian::native == std::endian::little, "kvtier runs on little-endian machines");

// Unaligned access to one little-endian value.
// REQUIRES: sizeof(T) bytes at the pointer.
template <typename T>
requires std::is_trivially_copyable_v<T> T LoadLittleEndian(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
requires std::is_trivially_copyable_v<T>
void StoreLittleEndian(T value, std::byte* to) { std::memcpy(to, &value, sizeof(T)); }

// Appends to `out`, which outlives the writer; what it already holds stays.
class ByteWriter {
 public:
  explicit ByteWriter(std::string* out) : text_(out) {}
  explicit ByteWriter(std::vector<std::byte>* out) : bytes_(out) {}

  void WriteU8(uint8_t value) { WriteValue(value); }
  void WriteU16(uint16_t value) { WriteValue(value); }
  void WriteU32(uint32_t value) { WriteValue(value); }
  void WriteU64(uint64_t value) { WriteValue(value); }
  void WriteI32(int32_t value) { WriteValue(value); }
  void WriteI64(int64_t value) { WriteValue(value); }
  void WriteF32(float value) { WriteValue(value); }
  void WriteF64(double value) { WriteValue(value); }

  // The bytes alone, without their count.
  void WriteBytes(ByteSpan bytes);
  void WriteBytes(absl::string_view text) { WriteBytes(AsBytes(text)); }
  void WriteZeros(size_t count);

  // Bytes in the buffer, including those before the first write.
  size_t size() const { return text_ != nullptr ? text_->size() : bytes_->size(); }

 private:
  template <typename T>
  void WriteValue(T value) {
    std::byte encoded[sizeof(T)];
    StoreLittleEndian(value, encoded);
    WriteBytes(ByteSpan(encoded));
  }

  // Exactly one of the two is set.
  std::string* text_ = nullptr;
  std::vector<std::byte>* bytes_ = nullptr;
};

// Reads forward over `bytes`, which outlive the reader and the spans it returns. A failed read
// moves nothing. Every method: INVALID_ARGUMENT if fewer bytes remain than asked for.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : bytes_(bytes) {}

  absl::StatusOr<uint8_t> ReadU8() { return ReadValue<uint8_t>(); }
  absl::StatusOr<uint16_t> ReadU16() { return ReadValue<uint16_t>(); }
  absl::StatusOr<uint32_t> ReadU32() { return ReadValue<uint32_t>(); }
  absl::StatusOr<uint64_t> ReadU64() { return ReadValue<uint64_t>(); }
  absl::StatusOr<int32_t> ReadI32() { return ReadValue<int32_t>(); }
  absl::StatusOr<int64_t> ReadI64() { return ReadValue<int64_t>(); }
  absl::StatusOr<float> ReadF32() { return ReadValue<float>(); }
  absl::StatusOr<double> ReadF64() { return ReadValue<double>(); }

  // `count` bytes in place. The count may be hostile: nothing is allocated or overflows.
  absl::StatusOr<ByteSpan> ReadBytes(uint64_t count);

  // A U32 count of items that follow, each of at least `item_bytes_min` bytes. INVALID_ARGUMENT
  // also if it is above `count_max` or if so many items cannot fit in what remains: after OK the
  // caller may reserve memory for them.
  // REQUIRES: item_bytes_min > 0
  absl::StatusOr<uint32_t> ReadCount(uint32_t count_max, size_t item_bytes_min);

  // INVALID_ARGUMENT if bytes remain.
  absl::Status ExpectEnd() const;

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }

 private:
  template <typename T>
  absl::StatusOr<T> ReadValue() {
    if (remaining() < sizeof(T)) return Truncated(sizeof(T));
    const T value = LoadLittleEndian<T>(bytes_.data() + offset_);
    offset_ += sizeof(T);
    return value;
  }

  absl::Status Truncated(uint64_t wanted_bytes) const;

  ByteSpan bytes_;
  size_t offset_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_BASE_BYTES_H_
