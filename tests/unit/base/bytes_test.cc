#include "base/bytes.h"

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST(BytesTest, ConvertInPlace) {
  const std::string text("a\0b", 3);
  const ByteSpan bytes = AsBytes(text);
  EXPECT_EQ(static_cast<const void*>(bytes.data()), text.data());
  EXPECT_THAT(bytes, ElementsAre(std::byte{'a'}, std::byte{0}, std::byte{'b'}));
  EXPECT_EQ(AsStringView(bytes), text);
  EXPECT_EQ(ToString(bytes), text);
  EXPECT_THAT(ToVector(bytes), ElementsAre(std::byte{'a'}, std::byte{0}, std::byte{'b'}));

  std::array<uint16_t, 2> values = {0x0201, 0x0403};
  EXPECT_THAT(AsBytes(std::span<const uint16_t>(values)),
              ElementsAre(std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}));
  AsMutableBytes(std::span(values))[0] = std::byte{9};
  EXPECT_EQ(values[0], 0x0209);
}

TEST(ByteWriterTest, WritesLittleEndianIntoEitherBuffer) {
  std::string text;
  std::vector<std::byte> bytes;
  for (ByteWriter writer : {ByteWriter(&text), ByteWriter(&bytes)}) {
    writer.WriteU8(0x01);
    writer.WriteU16(0x0302);
    writer.WriteU32(0x07060504);
    writer.WriteU64(0x0F0E0D0C0B0A0908);
    writer.WriteF32(1.0f);
    writer.WriteF64(-2.0);
    writer.WriteI32(-2);
    writer.WriteI64(-3);
    writer.WriteBytes("ab");
    writer.WriteBytes(AsBytes("c"));
    writer.WriteZeros(2);
    EXPECT_EQ(writer.size(), 44u);
  }
  const std::string expected(
      "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0A\x0B\x0C\x0D\x0E\x0F"
      "\x00\x00\x80\x3F\x00\x00\x00\x00\x00\x00\x00\xC0"
      "\xFE\xFF\xFF\xFF\xFD\xFF\xFF\xFF\xFF\xFF\xFF\xFF"
      "abc\0\0",
      44);
  EXPECT_EQ(text, expected);
  EXPECT_EQ(AsStringView(bytes), expected);
}

TEST(ByteWriterTest, KeepsWhatTheBufferHolds) {
  std::string text = "head";
  ByteWriter writer(&text);
  writer.WriteU8('!');
  EXPECT_EQ(text, "head!");
  EXPECT_EQ(writer.size(), 5u);
}

TEST(ByteReaderTest, ReadsBackWhatWasWritten) {
  std::string text;
  ByteWriter writer(&text);
  writer.WriteU8(0xFF);
  writer.WriteU16(0xFFFE);
  writer.WriteU32(0xFFFFFFFD);
  writer.WriteU64(std::numeric_limits<uint64_t>::max());
  writer.WriteI32(std::numeric_limits<int32_t>::min());
  writer.WriteI64(std::numeric_limits<int64_t>::min());
  writer.WriteF32(-0.0f);
  writer.WriteF64(std::numeric_limits<double>::infinity());
  writer.WriteBytes("tail");

  ByteReader reader(AsBytes(text));
  EXPECT_EQ(reader.remaining(), text.size());
  EXPECT_THAT(reader.ReadU8(), IsOkAndHolds(0xFF));
  EXPECT_THAT(reader.ReadU16(), IsOkAndHolds(0xFFFE));
  EXPECT_THAT(reader.ReadU32(), IsOkAndHolds(0xFFFFFFFD));
  EXPECT_THAT(reader.ReadU64(), IsOkAndHolds(std::numeric_limits<uint64_t>::max()));
  EXPECT_THAT(reader.ReadI32(), IsOkAndHolds(std::numeric_limits<int32_t>::min()));
  EXPECT_THAT(reader.ReadI64(), IsOkAndHolds(std::numeric_limits<int64_t>::min()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const float zero, reader.ReadF32());
  EXPECT_TRUE(zero == 0.0f && std::signbit(zero));
  EXPECT_THAT(reader.ReadF64(), IsOkAndHolds(std::numeric_limits<double>::infinity()));
  EXPECT_THAT(reader.ExpectEnd(), StatusIs(kInvalid, HasSubstr("4 bytes too many at offset 39")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ByteSpan tail, reader.ReadBytes(4));
  EXPECT_EQ(AsStringView(tail), "tail");
  EXPECT_EQ(static_cast<const void*>(tail.data()), text.data() + 39);
  KVTIER_EXPECT_OK(reader.ExpectEnd());
  EXPECT_EQ(reader.offset(), text.size());
}

TEST(ByteReaderTest, RefusesWhatDoesNotFitAndStaysWhereItWas) {
  ByteReader reader(AsBytes("abc"));
  EXPECT_THAT(reader.ReadU32(),
              StatusIs(kInvalid, "truncated: 4 bytes wanted at offset 0, 3 remain"));
  EXPECT_THAT(reader.ReadU64(), StatusIs(kInvalid));
  EXPECT_THAT(reader.ReadF32(), StatusIs(kInvalid));
  EXPECT_THAT(reader.ReadF64(), StatusIs(kInvalid));
  EXPECT_THAT(reader.ReadBytes(4), StatusIs(kInvalid));
  EXPECT_EQ(reader.offset(), 0u);
  EXPECT_THAT(reader.ReadU16(), IsOkAndHolds('a' | ('b' << 8)));
  EXPECT_THAT(reader.ReadU16(), StatusIs(kInvalid));
  EXPECT_THAT(reader.ReadU8(), IsOkAndHolds('c'));
  EXPECT_THAT(reader.ReadU8(), StatusIs(kInvalid));
  EXPECT_THAT(reader.ReadBytes(0), IsOkAndHolds(::testing::IsEmpty()));
}

TEST(ByteReaderTest, HostileByteCountsDoNotOverflow) {
  ByteReader reader(AsBytes("abc"));
  KVTIER_ASSERT_OK(reader.ReadU8());
  for (const uint64_t count : {uint64_t{3}, std::numeric_limits<uint64_t>::max(),
                               std::numeric_limits<uint64_t>::max() - 1, uint64_t{1} << 63}) {
    EXPECT_THAT(reader.ReadBytes(count), StatusIs(kInvalid)) << count;
  }
  EXPECT_EQ(reader.offset(), 1u);
}

TEST(ByteReaderTest, CountsAreHeldAgainstTheLimitAndTheBytesThatRemain) {
  std::string text;
  ByteWriter writer(&text);
  writer.WriteU32(3);
  writer.WriteZeros(12);
  {
    ByteReader reader(AsBytes(text));
    EXPECT_THAT(reader.ReadCount(3, 4), IsOkAndHolds(3u));
    EXPECT_EQ(reader.offset(), 4u);
  }
  {
    ByteReader reader(AsBytes(text));
    EXPECT_THAT(reader.ReadCount(2, 4), StatusIs(kInvalid, HasSubstr("count 3 at offset 0")));
    EXPECT_THAT(reader.ReadCount(3, 5), StatusIs(kInvalid, HasSubstr("12 bytes remain")));
    EXPECT_EQ(reader.offset(), 0u);
  }
  {
    const std::string hostile("\xFF\xFF\xFF\xFF", 4);
    ByteReader reader(AsBytes(hostile));
    EXPECT_THAT(
        reader.ReadCount(std::numeric_limits<uint32_t>::max(), std::numeric_limits<size_t>::max()),
        StatusIs(kInvalid));
  }
  {
    ByteReader reader(AsBytes("abc"));
    EXPECT_THAT(reader.ReadCount(1, 1), StatusIs(kInvalid));
  }
}

// Any reads over any bytes stay inside them; the sanitizers watch.
TEST(ByteReaderTest, RandomReadsNeverLeaveTheBytes) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const std::vector<std::byte> bytes = RandomBytes(random, RandomUniform(random, 0, 40));
    ByteReader reader(bytes);
    for (int step = 0; step < 20; ++step) {
      const size_t before = reader.remaining();
      bool ok = false;
      size_t taken = 0;
      switch (random() % 5) {
        case 0:
          ok = reader.ReadU8().ok();
          taken = 1;
          break;
        case 1:
          ok = reader.ReadU16().ok();
          taken = 2;
          break;
        case 2:
          ok = reader.ReadF64().ok();
          taken = 8;
          break;
        case 3:
          ok = reader.ReadCount(100, 3).ok();
          taken = 4;
          break;
        default:
          taken = random() % 9;
          ok = reader.ReadBytes(taken).ok();
      }
      ASSERT_EQ(before - reader.remaining(), ok ? taken : 0);
      ASSERT_EQ(reader.offset() + reader.remaining(), bytes.size());
    }
  }
}

}  // namespace
}  // namespace kvtier
