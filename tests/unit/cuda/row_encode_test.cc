// The device's scales and codes against the codecs that define them: the same bits.
#include "cuda/math/row_encode.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kvcache/row_codec.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

// Compares one row of both codecs; false scales must be refused by the codec, too.
void ExpectSameRow(const std::vector<float>& row) {
  const auto [least, most] = std::minmax_element(row.begin(), row.end());
  for (const CodecId id : {CodecId::kInt8, CodecId::kInt4}) {
    SCOPED_TRACE(
        absl::StrCat(CodecName(id), " row of ", row.size(), " in [", *least, ", ", *most, "]"));
    const RowCodec& codec = *FindRowCodec(id);
    std::vector<std::byte> codes(codec.code_bytes(static_cast<uint32_t>(row.size())));
    std::vector<std::byte> stored(codec.scale_bytes());
    const absl::Status status = codec.EncodeRow(row, codes.data(), stored.data());
    const RowScales scales =
        id == CodecId::kInt8 ? Int8Scales(*least, *most) : Int4Scales(*least, *most);
    ASSERT_EQ(scales.fits, status.ok()) << status;
    if (!status.ok()) continue;
    uint16_t expected[2] = {};
    std::memcpy(expected, stored.data(), stored.size());
    ASSERT_EQ(scales.scale, expected[0]);
    ASSERT_EQ(scales.minimum, expected[1]);
    for (size_t i = 0; i < row.size(); ++i) {
      if (id == CodecId::kInt8) {
        ASSERT_EQ(Int8Code(scales, row[i]), static_cast<int8_t>(codes[i])) << "element " << i;
      } else {
        const auto pair = std::to_integer<int>(codes[i / 2]);
        ASSERT_EQ(Int4Code(scales, row[i]), i % 2 == 0 ? pair >> 4 : pair & 15) << "element " << i;
      }
    }
  }
}

TEST(RowEncodeTest, RandomRowsOfEverySize) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 20000; ++i) {
    const float size = std::ldexp(1.0f, static_cast<int>(random() % 60) - 30);
    const float shift = random() % 2 == 0 ? 0 : size * static_cast<float>(random() % 7);
    std::uniform_real_distribution<float> uniform(-size, size);
    std::vector<float> row(1 + random() % 9);
    for (float& x : row) x = uniform(random) + shift;
    ExpectSameRow(row);
  }
}

TEST(RowEncodeTest, RowsAtTheEdges) {
  ExpectSameRow({0.0f, -0.0f});
  ExpectSameRow({-0.0f, -0.0f});
  ExpectSameRow({1e-40f, -1e-40f});
  ExpectSameRow({5.9604645e-8f});
  for (const float most : {65504.0f, 65505.0f, 65519.9f, 65520.0f}) {
    ExpectSameRow({most * 127});
    ExpectSameRow({-most});
    ExpectSameRow({0, most * 15});
    ExpectSameRow({-most, most * 14});
  }
  ExpectSameRow({-3e38f, 3e38f});
}

}  // namespace
}  // namespace kvtier
