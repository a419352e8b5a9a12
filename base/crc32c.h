// Upstream: absl/crc/crc32c.h, once the packaged abseil carries it.
//
// CRC-32C (Castagnoli, reflected, inverted at both ends): the checksum of every payload of ours.
// The check value of "123456789" is 0xE3069283. A Crc32c is not a number: it has no arithmetic, no
// order and no implicit conversion on purpose. Thread-safe: plain functions.
//
//   Crc32c crc = ComputeCrc32c(header);
//   crc = ExtendCrc32c(crc, payload);                        // of header ++ payload
//   crc = ConcatCrc32c(crc, tail_crc, tail.size());          // without reading the bytes again
#ifndef KVTIER_BASE_CRC32C_H_
#define KVTIER_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <span>

namespace kvtier {

class Crc32c {
 public:
  // The checksum of no bytes.
  constexpr Crc32c() = default;
  constexpr explicit Crc32c(uint32_t value) : value_(value) {}

  constexpr uint32_t value() const { return value_; }

  friend constexpr bool operator==(Crc32c a, Crc32c b) = default;
  friend std::ostream& operator<<(std::ostream& os, Crc32c crc);  // As 0xE3069283.

 private:
  uint32_t value_ = 0;
};

Crc32c ComputeCrc32c(std::span<const std::byte> bytes);

// Of a ++ `bytes`, where `crc` is of a.
Crc32c ExtendCrc32c(Crc32c crc, std::span<const std::byte> bytes);

// Of a ++ b from the checksums of both; `b_size` is the count of bytes of b. Costs tens of
// nanoseconds, whatever the sizes.
Crc32c ConcatCrc32c(Crc32c a, Crc32c b, uint64_t b_size);

}  // namespace kvtier

#endif  // KVTIER_BASE_CRC32C_H_
