#include "services/file_mode.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

TEST(FileModeTest, IsOctalWithAndWithoutAZeroBeforeIt) {
  const struct {
    const char* text;
    uint32_t bits;
  } cases[] = {{"0660", 0660}, {"660", 0660}, {"0600", 0600}, {"777", 0777}};
  for (const auto& [text, bits] : cases) {
    SCOPED_TRACE(text);
    FileMode mode;
    std::string error;
    ASSERT_TRUE(AbslParseFlag(text, &mode, &error)) << error;
    EXPECT_EQ(mode.bits, bits);
  }
}

TEST(FileModeTest, WhatIsNoModeIsRefusedAndChangesNothing) {
  for (const char* text :
       {"", "0", "60", "0x180", "0668", "1777", "04755", "00660", "-660", "rw-", " 660", "6 0"}) {
    SCOPED_TRACE(text);
    FileMode mode{.bits = 0600};
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &mode, &error));
    EXPECT_THAT(error, HasSubstr("three octal digits"));
    EXPECT_EQ(mode.bits, 0600u);
  }
}

// In decimal: 0660, 0640, 0666, 0600, 0777, 0770. As octal digits some would be modes for others.
TEST(FileModeTest, DecimalNumbersAreRefused) {
  for (const char* text : {"432", "416", "438", "384", "511", "504"}) {
    SCOPED_TRACE(text);
    FileMode mode{.bits = 0600};
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &mode, &error));
    EXPECT_THAT(error, HasSubstr("octal"));
    EXPECT_EQ(mode.bits, 0600u);
  }
}

TEST(FileModeTest, IsWrittenAsItIsRead) {
  for (const uint32_t bits : {0600u, 0604u, 0660u, 0777u}) {
    FileMode mode;
    std::string error;
    ASSERT_TRUE(AbslParseFlag(AbslUnparseFlag({.bits = bits}), &mode, &error)) << error;
    EXPECT_EQ(mode.bits, bits);
  }
  EXPECT_EQ(AbslUnparseFlag({.bits = 0660}), "0660");
}

}  // namespace
}  // namespace kvtier
