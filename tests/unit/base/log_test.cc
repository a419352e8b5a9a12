#include "base/log.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_split.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class LogTest : public ::testing::Test {
 protected:
  ~LogTest() override { InitLogging(LogOptions{}); }

  template <typename Function>
  static std::string Capture(Function function) {
    ::testing::internal::CaptureStderr();
    function();
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, TextLineHasTimeSeverityPlaceAndMessage) {
  const std::string line = Capture([] { KVTIER_LOG(WARNING) << "disk " << 7 << "% full"; });
  EXPECT_THAT(line, ContainsRegex("^20[0-9-]+T[0-9:]+\\.[0-9]+Z WARNING log_test.cc:[0-9]+\\] disk "
                                  "7% full\n$"));
}

TEST_F(LogTest, TextLineNamesTheComponent) {
  InitLogging({.component = "store"});
  EXPECT_THAT(Capture([] { KVTIER_LOG(INFO) << "up"; }), HasSubstr("INFO    store log_test.cc:"));
}

TEST_F(LogTest, JsonLineIsOneValidObjectWhateverTheMessage) {
  InitLogging({.format = LogFormat::kJson, .component = "sto\"re"});
  const std::string hostile(
      "quote\" back\\ nl\n tab\t nul\0 del\x7F e\xC3\xA9 \xE2\x82\xAC bad\xFF\xC3", 46);
  const std::string line = Capture([&] { KVTIER_LOG(ERROR) << hostile; });
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  const nlohmann::json json = nlohmann::json::parse(line);  // Throws on invalid UTF-8 too.
  EXPECT_EQ(json["severity"], "error");
  EXPECT_EQ(json["component"], "sto\"re");
  EXPECT_EQ(json["file"], "log_test.cc");
  EXPECT_GT(json["line"], 0);
  EXPECT_GT(json["thread"], 0);
  const std::string message = json["message"];
  EXPECT_THAT(message, HasSubstr("quote\" back\\ nl\n tab\t nul"));
  EXPECT_THAT(message, HasSubstr("e\xC3\xA9 \xE2\x82\xAC bad\xEF\xBF\xBD\xEF\xBF\xBD"));
}

TEST_F(LogTest, JsonReplacesEveryIllFormedUtf8Sequence) {
  InitLogging({.format = LogFormat::kJson});
  for (const std::string bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x80\x80", "\xE2\x82", "\xED\xA0\x80",
        "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF0\x9F\x98", "\xF5\x80\x80\x80", "\xFE"}) {
    const nlohmann::json json = nlohmann::json::parse(Capture([&] { KVTIER_LOG(ERROR) << bad; }));
    EXPECT_THAT(json["message"].get<std::string>(), HasSubstr("\xEF\xBF\xBD"));
  }
  for (const std::string good : {"\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF",
                                 "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    const nlohmann::json json = nlohmann::json::parse(Capture([&] { KVTIER_LOG(ERROR) << good; }));
    EXPECT_EQ(json["message"], good);
  }
}

TEST_F(LogTest, BelowTheMinimumNothingIsEvaluated) {
  InitLogging({.min_level = LogSeverity::kWarning});
  int evaluated = 0;
  const std::string output = Capture([&] {
    KVTIER_LOG(DEBUG) << ++evaluated;
    KVTIER_LOG(INFO) << ++evaluated;
    KVTIER_LOG(WARNING) << ++evaluated;
  });
  EXPECT_EQ(evaluated, 1);
  EXPECT_THAT(std::vector<std::string>(absl::StrSplit(output, '\n', absl::SkipEmpty())), SizeIs(1));
  EXPECT_FALSE(LogEnabled(LogSeverity::kInfo));
  EXPECT_TRUE(LogEnabled(LogSeverity::kError));
}

TEST_F(LogTest, DefaultMinimumIsInfo) {
  EXPECT_THAT(Capture([] { KVTIER_LOG(DEBUG) << "detail"; }), IsEmpty());
  EXPECT_THAT(Capture([] { KVTIER_LOG(INFO) << "start"; }), HasSubstr("start"));
}

TEST_F(LogTest, BracesAreNotAFormat) {
  EXPECT_THAT(Capture([] { KVTIER_LOG(INFO) << "{} {0} %v"; }), HasSubstr("] {} {0} %v\n"));
}

TEST_F(LogTest, EveryNSecondsWritesOncePerPeriodAndPlace) {
  const std::string output = Capture([] {
    for (int i = 0; i < 100; ++i) KVTIER_LOG_EVERY_N_SEC(INFO, 3600) << "first place " << i;
    KVTIER_LOG_EVERY_N_SEC(INFO, 3600) << "second place";
  });
  EXPECT_THAT(output, AllOf(HasSubstr("first place 0"), HasSubstr("second place")));
  EXPECT_THAT(std::vector<std::string>(absl::StrSplit(output, '\n', absl::SkipEmpty())), SizeIs(2));
}

TEST_F(LogTest, EveryZeroSecondsWritesAlways) {
  const std::string output = Capture([] {
    for (int i = 0; i < 3; ++i) KVTIER_LOG_EVERY_N_SEC(INFO, 0) << i;
  });
  EXPECT_THAT(std::vector<std::string>(absl::StrSplit(output, '\n', absl::SkipEmpty())), SizeIs(3));
}

TEST_F(LogTest, LinesOfThreadsDoNotMix) {
  const std::string output = Capture([] {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        for (int j = 0; j < 50; ++j) KVTIER_LOG(INFO) << std::string(100, 'x');
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  const std::vector<std::string> lines = absl::StrSplit(output, '\n', absl::SkipEmpty());
  EXPECT_THAT(lines, SizeIs(200));
  for (const std::string& line : lines) {
    ASSERT_THAT(line, ::testing::EndsWith("] " + std::string(100, 'x')));
  }
}

TEST_F(LogTest, ParsesFlagValues) {
  EXPECT_THAT(ParseLogSeverity("debug"), IsOkAndHolds(LogSeverity::kDebug));
  EXPECT_THAT(ParseLogSeverity("info"), IsOkAndHolds(LogSeverity::kInfo));
  EXPECT_THAT(ParseLogSeverity("warning"), IsOkAndHolds(LogSeverity::kWarning));
  EXPECT_THAT(ParseLogSeverity("error"), IsOkAndHolds(LogSeverity::kError));
  EXPECT_THAT(ParseLogSeverity("INFO"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"INFO\"")));
  EXPECT_THAT(ParseLogFormat("text"), IsOkAndHolds(LogFormat::kText));
  EXPECT_THAT(ParseLogFormat("json"), IsOkAndHolds(LogFormat::kJson));
  EXPECT_THAT(ParseLogFormat(""), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(CheckTest, PassesSilentlyAndEvaluatesOnce) {
  int a = 0;
  KVTIER_CHECK(++a == 1) << "never " << ++a;
  KVTIER_CHECK_EQ(++a, 2) << ++a;
  KVTIER_CHECK_NE(a, 3);
  KVTIER_CHECK_LT(a, 3);
  KVTIER_CHECK_LE(a, 2);
  KVTIER_CHECK_GT(a, 1);
  KVTIER_CHECK_GE(a, 2);
  KVTIER_CHECK_OK(absl::OkStatus());
  KVTIER_CHECK_OK(absl::StatusOr<int>(1)) << ++a;
  KVTIER_DCHECK(a == 2) << ++a;
  EXPECT_EQ(a, 2);
}

TEST(CheckTest, IsOneStatement) {
  bool reached_else = false;
  if (false)
    KVTIER_CHECK(true);
  else
    reached_else = true;
  EXPECT_TRUE(reached_else);
}

TEST(CheckTest, ComparesIntegersByValue) {
  KVTIER_CHECK_LT(-1, 1u);
  KVTIER_CHECK_NE(-1, 0xFFFFFFFFu);
  KVTIER_CHECK_EQ(size_t{3}, 3);
  KVTIER_CHECK_EQ(uint8_t{200}, 200);
  KVTIER_CHECK_EQ(std::string("a"), "a");
}

enum class Color { kRed = 3 };
struct Opaque {
  bool operator==(const Opaque&) const { return false; }
};

TEST(CheckDeathTest, DiesWithPlaceConditionValuesAndMessage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(KVTIER_CHECK(1 > 2) << "layer " << 7,
               "FATAL .*log_test.cc:[0-9]+\\] CHECK failed: 1 > 2 layer 7");
  EXPECT_DEATH(KVTIER_CHECK((std::is_same_v<int, bool>)),
               "CHECK failed: \\(std::is_same_v<int, bool>\\)\n");
  EXPECT_DEATH(KVTIER_CHECK_EQ(1 + 1, 3) << "sum",
               "CHECK failed: 1 \\+ 1 == 3 \\(2 vs\\. 3\\) sum");
  EXPECT_DEATH(KVTIER_CHECK_EQ(uint8_t{65}, 66), "\\(65 vs\\. 66\\)");
  EXPECT_DEATH(KVTIER_CHECK_NE(Color::kRed, Color::kRed), "\\(3 vs\\. 3\\)");
  EXPECT_DEATH(KVTIER_CHECK_EQ(Opaque(), Opaque()), "a value without operator<<");
  EXPECT_DEATH(KVTIER_CHECK_LT(2, 2), "2 < 2");
  EXPECT_DEATH(KVTIER_CHECK_LE(3, 2), "3 <= 2");
  EXPECT_DEATH(KVTIER_CHECK_GT(2, 2), "2 > 2");
  EXPECT_DEATH(KVTIER_CHECK_GE(2, 3), "2 >= 3");
}

TEST(CheckDeathTest, CheckOkDiesWithTheStatus) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(KVTIER_CHECK_OK(absl::DataLossError("crc")) << "in test",
               "CHECK failed: absl::DataLossError\\(\"crc\"\\) is OK \\(DATA_LOSS: crc\\) in test");
  EXPECT_DEATH(KVTIER_CHECK_OK(absl::StatusOr<int>(absl::AbortedError("epoch"))), "ABORTED: epoch");
}

TEST(CheckDeathTest, FatalLogAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(KVTIER_LOG(FATAL) << "no way on", ::testing::KilledBySignal(SIGABRT), "no way on");
}

#ifdef NDEBUG
TEST(CheckTest, DcheckIsNotEvaluatedInRelease) {
  int evaluated = 0;
  KVTIER_DCHECK(++evaluated == 0);
  EXPECT_EQ(evaluated, 0);
}
#else
TEST(CheckDeathTest, DcheckDiesInDebug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(KVTIER_DCHECK(1 > 2), "1 > 2");
}
#endif

}  // namespace
}  // namespace kvtier
