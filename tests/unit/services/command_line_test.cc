#include "services/command_line.h"

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"

ABSL_FLAG(std::string, test_text_flag, "standard", "some text");
ABSL_FLAG(uint32_t, test_number_flag, 7, "some number");
ABSL_FLAG(bool, test_switch_flag, false, "on or off");
ABSL_FLAG(bool, notable_test_flag, false, "begins with no");

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class CommandLineTest : public ::testing::Test {
 protected:
  ~CommandLineTest() override {
    absl::SetFlag(&FLAGS_test_text_flag, "standard");
    absl::SetFlag(&FLAGS_test_number_flag, 7);
    absl::SetFlag(&FLAGS_test_switch_flag, false);
    absl::SetFlag(&FLAGS_notable_test_flag, false);
  }
  absl::StatusOr<CommandLine> Parse(std::vector<const char*> words) {
    return ParseFlags(
        words, {"test_text_flag", "test_number_flag", "test_switch_flag", "notable_test_flag"});
  }
};

TEST_F(CommandLineTest, TakesValuesBehindTheNameOrAsTheNextWord) {
  KVTIER_ASSERT_OK(Parse({"--test_text_flag=a=b", "--test_number_flag", "12"}));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_text_flag), "a=b");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_number_flag), 12);
}

TEST_F(CommandLineTest, TakesMinusForUnderscore) {
  KVTIER_ASSERT_OK(Parse({"--test-text-flag=x-y_z", "--test-switch-flag"}));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_text_flag), "x-y_z");
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch_flag));
}

TEST_F(CommandLineTest, SwitchesTakeNoWord) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const CommandLine line, Parse({"--test_switch_flag", "false"}));
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch_flag));
  EXPECT_THAT(line.arguments, ElementsAre("false"));
  KVTIER_ASSERT_OK(Parse({"--notest_switch_flag"}));
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch_flag));
  KVTIER_ASSERT_OK(Parse({"--test_switch_flag=true", "--notable_test_flag"}));
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch_flag));
  EXPECT_TRUE(absl::GetFlag(FLAGS_notable_test_flag));
}

TEST_F(CommandLineTest, GivesArgumentsInOrder) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const CommandLine line,
                              Parse({"a", "--test_number_flag=1", "-", "--", "--b", "c"}));
  EXPECT_THAT(line.arguments, ElementsAre("a", "-", "--b", "c"));
  EXPECT_FALSE(line.help);
  EXPECT_THAT(Parse({})->arguments, IsEmpty());
}

TEST_F(CommandLineTest, StopsAtHelp) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const CommandLine line, Parse({"--help", "--nonsense"}));
  EXPECT_TRUE(line.help);
  EXPECT_TRUE(Parse({"x", "-h"})->help);
}

TEST_F(CommandLineTest, NamesWhatItDoesNotUnderstand) {
  using absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(Parse({"--nonsense=1"}), StatusIs(kInvalidArgument, "--nonsense is no flag"));
  EXPECT_THAT(Parse({"-x"}), StatusIs(kInvalidArgument, HasSubstr("-x")));
  EXPECT_THAT(Parse({"--test_text_flag"}), StatusIs(kInvalidArgument, HasSubstr("needs a value")));
  EXPECT_THAT(Parse({"--test_number_flag=many"}),
              StatusIs(kInvalidArgument, AllOf(HasSubstr("test_number_flag"), HasSubstr("many"))));
  EXPECT_THAT(Parse({"--test_number_flag=-1"}),
              StatusIs(kInvalidArgument, HasSubstr("test_number_flag")));
  EXPECT_THAT(Parse({"--notest_text_flag"}), StatusIs(kInvalidArgument, HasSubstr("is no flag")));
  EXPECT_THAT(Parse({"--notest_switch_flag=1"}),
              StatusIs(kInvalidArgument, HasSubstr("is no flag")));
}

TEST_F(CommandLineTest, RefusesFlagsThatMeanNothingHere) {
  EXPECT_THAT(
      ParseFlags(std::vector<const char*>{"--test-number-flag=1"}, {"test_text_flag"}),
      StatusIs(absl::StatusCode::kInvalidArgument, "--test-number-flag has no meaning here"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_number_flag), 7);
}

TEST_F(CommandLineTest, FindsFlagsByTheFolderOfTheirFile) {
  EXPECT_THAT(
      FlagsDefinedIn("tests/unit/services/", "absl/"),
      ElementsAre("notable_test_flag", "test_number_flag", "test_switch_flag", "test_text_flag"));
  EXPECT_THAT(FlagsDefinedIn("tests/unit/services/", "command_line_test"), IsEmpty());
}

TEST_F(CommandLineTest, ExplainsFlagsWithTheirDefaults) {
  const std::string help = FormatFlags({"test_number_flag", "test_switch_flag"});
  EXPECT_THAT(help, HasSubstr("  --test_number_flag=7\n      some number\n"));
  EXPECT_THAT(help, HasSubstr("  --test_switch_flag\n      on or off\n"));
  EXPECT_THAT(help, Not(HasSubstr("test_text_flag")));
}

}  // namespace
}  // namespace kvtier
