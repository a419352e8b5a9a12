// What the conformance suite does not reach: large offsets in steps of the grid, unaligned rows,
// many element types.
#include "cuda/elementwise.h"

#include <cstdint>
#include <numeric>
#include <vector>

#include "base/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(ConvertTest, RoundsToNearestEvenBetweenAllTypes) {
  const std::vector<float> values = {0, 1, -1.5f, 1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, 1e-6f, 70000};
  std::vector<uint16_t> bf16(values.size());
  std::vector<uint16_t> f16(values.size());
  ASSERT_EQ(LaunchConvert({.from = values.data(),
                           .to = bf16.data(),
                           .to_type = Element::kBf16,
                           .count = static_cast<int64_t>(values.size())},
                          nullptr),
            0);
  ASSERT_EQ(LaunchConvert({.from = values.data(),
                           .to = f16.data(),
                           .to_type = Element::kF16,
                           .count = static_cast<int64_t>(values.size())},
                          nullptr),
            0);
  std::vector<float> back(values.size());
  ASSERT_EQ(LaunchConvert({.from = bf16.data(),
                           .from_type = Element::kBf16,
                           .to = back.data(),
                           .count = static_cast<int64_t>(values.size())},
                          nullptr),
            0);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(bf16[i], bfloat16(values[i]).bits);
    EXPECT_EQ(f16[i], float16(values[i]).bits);
    EXPECT_EQ(back[i], static_cast<float>(bfloat16(values[i])));
  }
}

// More elements than a grid has threads.
TEST(ConvertTest, StepsOverTheWholeArray) {
  const int64_t count = 4096 * 256 + 77;
  std::vector<float> from(count);
  std::iota(from.begin(), from.end(), 0.0f);
  std::vector<float> to(count + 1, -1.0f);
  ASSERT_EQ(LaunchConvert({.from = from.data(), .to = to.data(), .count = count}, nullptr), 0);
  EXPECT_EQ(to.back(), -1.0f) << "written past the end";
  to.pop_back();
  EXPECT_EQ(to, from);
}

TEST(GatherRowsTest, CopiesRowsThatSixteenBytesDoNotDivide) {
  for (const int64_t row_bytes : {2, 6, 16, 48, 50, 256}) {
    for (const int64_t shift : {0, 2}) {  // 2: the pointers are not aligned to 16 bytes.
      const int64_t capacity = 9;
      std::vector<uint8_t> memory(2 * capacity * row_bytes + shift + 32);
      std::iota(memory.begin(), memory.end(), uint8_t{0});
      const uint8_t* keys = memory.data() + shift;
      const uint8_t* values = keys + capacity * row_bytes;
      const std::vector<uint32_t> positions = {8, 0, 3, 3};
      std::vector<uint8_t> keys_out(4 * row_bytes + 1, 0xEE);
      std::vector<uint8_t> values_out(4 * row_bytes + 1, 0xEE);
      ASSERT_EQ(LaunchGatherRows({.keys = keys,
                                  .values = values,
                                  .positions = positions.data(),
                                  .keys_out = keys_out.data(),
                                  .values_out = values_out.data(),
                                  .rows = 4,
                                  .row_bytes = row_bytes},
                                 nullptr),
                0);
      for (int64_t i = 0; i < 4 * row_bytes; ++i) {
        const int64_t from = positions[i / row_bytes] * row_bytes + i % row_bytes;
        ASSERT_EQ(keys_out[i], keys[from]);
        ASSERT_EQ(values_out[i], values[from]);
      }
      EXPECT_EQ(keys_out.back(), 0xEE);
      EXPECT_EQ(values_out.back(), 0xEE);
    }
  }
}

TEST(EmbedTest, NoRowsLaunchNothing) {
  EXPECT_EQ(LaunchEmbed({.rows = 0, .cols = 64}, nullptr), 0);
  EXPECT_EQ(LaunchRmsNorm({.rows = 0, .cols = 64}, nullptr), 0);
}

}  // namespace
}  // namespace kvtier
