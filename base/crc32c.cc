#include "base/crc32c.h"

#include <algorithm>
#include <array>
#include <limits>
#include <ostream>

#include <isa-l/crc.h>

namespace kvtier {
namespace {

// Polynomials over GF(2) modulo the one of CRC-32C, reflected: bit 31 is the coefficient of x^0.
constexpr uint32_t kPolynomial = 0x82F63B78;
constexpr uint32_t kOne = 0x80000000;

constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1u) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;  // times x
  }
  return product;
}

// Element i is x^(8 * 2^i): the shift by 2^i bytes.
constexpr std::array<uint32_t, 64> kShiftByPowerOfTwoBytes = [] {
  std::array<uint32_t, 64> powers{};
  powers[0] = kOne >> 8;
  for (size_t i = 1; i < powers.size(); ++i) powers[i] = Multiply(powers[i - 1], powers[i - 1]);
  return powers;
}();

}  // namespace

std::ostream& operator<<(std::ostream& os, Crc32c crc) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  char text[11] = "0x";
  for (int i = 0; i < 8; ++i) text[2 + i] = kDigits[(crc.value() >> (28 - 4 * i)) & 0xFu];
  return os << text;
}

Crc32c ComputeCrc32c(std::span<const std::byte> bytes) { return ExtendCrc32c(Crc32c(), bytes); }

Crc32c ExtendCrc32c(Crc32c crc, std::span<const std::byte> bytes) {
  // ISA-L counts in int and leaves the inversion at both ends to the caller.
  constexpr size_t kPieceBytesMax = size_t{1} << 30;
  static_assert(kPieceBytesMax <= std::numeric_limits<int>::max());
  uint32_t state = ~crc.value();
  while (!bytes.empty()) {
    const std::span<const std::byte> piece = bytes.first(std::min(bytes.size(), kPieceBytesMax));
    // Its parameter lacks a const; it only reads.
    auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(piece.data()));
    state = crc32_iscsi(data, static_cast<int>(piece.size()), state);
    bytes = bytes.subspan(piece.size());
  }
  return Crc32c(~state);
}

Crc32c ConcatCrc32c(Crc32c a, Crc32c b, uint64_t b_size) {
  // crc(a ++ b) = crc(a) * x^(8 * |b|) + crc(b): the inversions of the two ends cancel.
  uint32_t shifted = a.value();
  for (size_t i = 0; b_size != 0; ++i, b_size >>= 1) {
    if ((b_size & 1u) != 0) shifted = Multiply(kShiftByPowerOfTwoBytes[i], shifted);
  }
  return Crc32c(shifted ^ b.value());
}

}  // namespace kvtier
