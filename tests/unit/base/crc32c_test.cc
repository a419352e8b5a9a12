#include "base/crc32c.h"

#include <array>
#include <random>
#include <sstream>
#include <vector>

#include "base/bytes.h"
#include "base/copy_crc32c.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

// The plain twin: one table, one byte at a time.
Crc32c PlainCrc32c(ByteSpan bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t entry = i;
      for (int bit = 0; bit < 8; ++bit) entry = (entry >> 1) ^ (entry & 1 ? 0x82F63B78u : 0u);
      entries[i] = entry;
    }
    return entries;
  }();
  uint32_t state = 0xFFFFFFFF;
  for (const std::byte b : bytes) {
    state = (state >> 8) ^ table[(state ^ static_cast<uint32_t>(b)) & 0xFF];
  }
  return Crc32c(~state);
}

TEST(Crc32cTest, HasTheStandardCheckValue) {
  EXPECT_EQ(ComputeCrc32c(AsBytes("123456789")), Crc32c(0xE3069283));
}

// RFC 3720, appendix B.4.
TEST(Crc32cTest, HasTheValuesOfIscsi) {
  std::vector<std::byte> bytes(32);
  EXPECT_EQ(ComputeCrc32c(bytes), Crc32c(0x8A9136AA));
  std::ranges::fill(bytes, std::byte{0xFF});
  EXPECT_EQ(ComputeCrc32c(bytes), Crc32c(0x62A8AB43));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(ComputeCrc32c(bytes), Crc32c(0x46DD794E));
}

TEST(Crc32cTest, OfNothingIsTheDefault) {
  EXPECT_EQ(ComputeCrc32c({}), Crc32c());
  EXPECT_EQ(Crc32c().value(), 0u);
}

TEST(Crc32cTest, AgreesWithThePlainTwinAtEveryLengthAndAlignment) {
  std::mt19937_64 random(TestSeed());
  const std::vector<std::byte> bytes = RandomBytes(random, 5000);
  for (size_t begin = 0; begin < 8; ++begin) {
    for (size_t count = 0; count < 300; ++count) {
      const ByteSpan span = ByteSpan(bytes).subspan(begin, count);
      ASSERT_EQ(ComputeCrc32c(span), PlainCrc32c(span)) << begin << " " << count;
    }
  }
  EXPECT_EQ(ComputeCrc32c(bytes), PlainCrc32c(bytes));
}

TEST(Crc32cTest, ExtendAndConcatGiveTheWholeAtEverySplit) {
  std::mt19937_64 random(TestSeed());
  const std::vector<std::byte> bytes = RandomBytes(random, 700);
  const Crc32c whole = ComputeCrc32c(bytes);
  for (size_t split = 0; split <= bytes.size(); ++split) {
    const ByteSpan a = ByteSpan(bytes).first(split);
    const ByteSpan b = ByteSpan(bytes).subspan(split);
    ASSERT_EQ(ExtendCrc32c(ComputeCrc32c(a), b), whole) << split;
    ASSERT_EQ(ConcatCrc32c(ComputeCrc32c(a), ComputeCrc32c(b), b.size()), whole) << split;
  }
}

// Sizes around the piece that is copied at once, at uneven addresses; nothing is written beyond.
TEST(Crc32cTest, CopyAndExtendCopiesAndAgreesWithThePlainTwin) {
  std::mt19937_64 random(TestSeed());
  constexpr size_t kPiece = size_t{16} << 10;
  const std::vector<std::byte> bytes = RandomBytes(random, 2 * kPiece + 100);
  const Crc32c before = ComputeCrc32c(AsBytes("before"));
  for (const size_t count :
       {size_t{0}, size_t{1}, size_t{63}, kPiece - 1, kPiece, kPiece + 1, 2 * kPiece + 7}) {
    for (const size_t shift : {size_t{0}, size_t{3}}) {
      const ByteSpan from = ByteSpan(bytes).subspan(shift, count);
      std::vector<std::byte> to(shift + count + 1, std::byte{0x5A});
      const Crc32c crc = CopyAndExtendCrc32c(before, from, to.data() + shift);
      ASSERT_EQ(crc, ConcatCrc32c(before, PlainCrc32c(from), count)) << count << " " << shift;
      ASSERT_TRUE(std::ranges::equal(ByteSpan(to).subspan(shift, count), from)) << count;
      ASSERT_EQ(to.back(), std::byte{0x5A}) << count;
    }
  }
}

// Zeros are cheap to describe: n of them after a are n zeros of b, whatever the width of n.
TEST(Crc32cTest, ConcatIsAssociativeForSizesOverFourGiB) {
  const Crc32c a = ComputeCrc32c(AsBytes("head"));
  const std::vector<std::byte> zeros(1 << 20);
  Crc32c zeros_crc = ComputeCrc32c(zeros);
  uint64_t zeros_bytes = zeros.size();
  Crc32c extended = ConcatCrc32c(a, zeros_crc, zeros_bytes);
  for (int i = 0; i < 14; ++i) {  // To 16 GiB.
    extended = ConcatCrc32c(extended, zeros_crc, zeros_bytes);
    zeros_crc = ConcatCrc32c(zeros_crc, zeros_crc, zeros_bytes);
    zeros_bytes *= 2;
    ASSERT_EQ(ConcatCrc32c(a, zeros_crc, zeros_bytes), extended) << zeros_bytes;
  }
}

TEST(Crc32cTest, SeesEveryFlippedBit) {
  std::mt19937_64 random(TestSeed());
  std::vector<std::byte> bytes = RandomBytes(random, 64);
  const Crc32c before = ComputeCrc32c(bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    const std::byte mask{static_cast<uint8_t>(1u << (bit % 8))};
    bytes[bit / 8] ^= mask;
    EXPECT_NE(ComputeCrc32c(bytes), before) << bit;
    bytes[bit / 8] ^= mask;
  }
}

TEST(Crc32cTest, PrintsAsHexadecimal) {
  std::ostringstream os;
  os << Crc32c(0xE3069283) << " " << Crc32c(0x1F);
  EXPECT_EQ(os.str(), "0xE3069283 0x0000001F");
}

}  // namespace
}  // namespace kvtier
