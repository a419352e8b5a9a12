#include "kvcache/position_code.h"

#include <numeric>
#include <random>
#include <vector>

#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::byte> Encode(const std::vector<uint32_t>& positions) {
  std::vector<std::byte> code(positions.size() * kPositionCodeBytesMax);
  code.resize(EncodePositions(positions, code.data()));
  return code;
}

std::vector<std::byte> Bytes(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

TEST(PositionCodeTest, GapsOfEverySizeRoundTrip) {
  constexpr uint32_t kLast = limits::kSystemTokensMax + limits::kContextTokensMax - 1;
  std::vector<std::vector<uint32_t>> cases = {
      {},      {0},          {kLast},      {0, kLast}, {127, 128, 256}, {128}, {16383, 32768},
      {16384}, {0, 1, 2, 3}, {0, 128, 257}};
  std::mt19937_64 random(3);
  for (const double density : {0.0001, 0.01, 0.1, 0.9, 1.0}) {
    std::bernoulli_distribution kept(density);
    std::vector<uint32_t> positions;
    for (uint32_t p = 0; p < 100000; ++p) {
      if (kept(random)) positions.push_back(p);
    }
    cases.push_back(positions);
  }
  for (const std::vector<uint32_t>& positions : cases) {
    std::vector<std::byte> code = Encode(positions);
    EXPECT_GE(code.size(), positions.size() * kPositionCodeBytesMin);
    const auto rows = static_cast<uint32_t>(positions.size());
    EXPECT_THAT(DecodePositions(code, rows), IsOkAndHolds(positions));
    code.resize(code.size() + kPositionCodePaddingMax);
    EXPECT_THAT(DecodePositions(code, rows), IsOkAndHolds(positions));
    code.resize(code.size() + 1);
    EXPECT_THAT(DecodePositions(code, rows),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("64 bytes of padding")));
  }
}

TEST(PositionCodeTest, OneByteForGapsBelow128) {
  EXPECT_EQ(Encode({5, 6, 134, 262}), Bytes({5, 0, 127, 127}));
  EXPECT_EQ(Encode({0, 129}), Bytes({0, 0x80, 1}));
}

TEST(PositionCodeTest, HostileCodesAreRefused) {
  const auto refuses = [](const std::vector<std::byte>& code, uint32_t rows, const char* message) {
    EXPECT_THAT(DecodePositions(code, rows),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr(message)));
  };
  refuses({}, 1, "0 bytes for 1 positions");
  refuses(Bytes({1, 2}), 0xFFFFFFFF, "2 bytes for");
  refuses(Bytes({0x80}), 1, "ends in position 0");
  refuses(Bytes({0, 0x80, 0x80}), 2, "ends in position 1");
  refuses(Bytes({0x80, 0}), 1, "shortest form");
  refuses(Bytes({0x85, 0x80, 0}), 1, "shortest form");
  refuses(Bytes({0x80, 0x80, 0x80, 1}), 1, "too long");
  refuses(Bytes({0xFF, 0xFF, 0x7F, 0}), 2, "position 1 is 2097152");
  refuses(Bytes({1, 2, 3}), 2, "bytes follow");
  EXPECT_THAT(DecodePositions(Bytes({1, 2, 0}), 2), IsOkAndHolds(ElementsAre(1, 4)));
}

TEST(PositionCodeDeathTest, PositionsMustAscend) {
  std::byte code[16];
  const uint32_t same[] = {4, 4};
  const uint32_t beyond[] = {1u << 21};
  EXPECT_DEATH(EncodePositions(same, code), "position 4 after 4");
  EXPECT_DEATH(EncodePositions(beyond, code), "position 2097152");
}

}  // namespace
}  // namespace kvtier
