#include <string>
#include <vector>

#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "services/ctl/input.h"
#include "tests/testing/temp_dir.h"

namespace kvtier::ctl {
namespace {

using absl::StatusCode::kInvalidArgument;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CtlInputTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, absl::string_view bytes) {
    const std::string path = dir_.File(name);
    KVTIER_EXPECT_OK(WriteFile(path, bytes));
    return path;
  }
  TempDir dir_;
};

TEST_F(CtlInputTest, ReadsWhatItWrote) {
  const std::string bytes("a\0\xff\n", 4);
  EXPECT_THAT(ReadFile(Write("file", bytes), 4), IsOkAndHolds(bytes));
  EXPECT_THAT(ReadFile(Write("empty", ""), 0), IsOkAndHolds(""));
}

TEST_F(CtlInputTest, NamesFileAndLimitOfWhatIsTooLong) {
  const std::string path = Write("file", std::string(200'000, 'x'));
  KVTIER_EXPECT_OK(ReadFile(path, 200'000));
  EXPECT_THAT(ReadFile(path, 199'999),
              StatusIs(kInvalidArgument, AllOf(HasSubstr(path), HasSubstr("199999 bytes"))));
}

TEST_F(CtlInputTest, NamesWhatCannotBeReadOrWritten) {
  EXPECT_THAT(ReadFile(dir_.File("missing"), 10),
              StatusIs(kInvalidArgument, HasSubstr(dir_.File("missing"))));
  EXPECT_THAT(ReadFile(dir_.path(), 10),
              StatusIs(kInvalidArgument, HasSubstr(dir_.path().string())));
  EXPECT_THAT(WriteFile(dir_.File("no/such/folder"), "x"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no/such/folder")));
}

TEST_F(CtlInputTest, ReadsIdsFromAFlag) {
  const auto parse = [](absl::string_view text) { return ParseIdList(text, "--ids", 100, 3); };
  EXPECT_THAT(parse(""), IsOkAndHolds(IsEmpty()));
  EXPECT_THAT(parse("7"), IsOkAndHolds(ElementsAre(7u)));
  EXPECT_THAT(parse("99,0,7"), IsOkAndHolds(ElementsAre(99u, 0u, 7u)));
  for (const char* text : {",", "1,", ",1", "x", "1;2", "-1", "1.5", "4294967296"}) {
    EXPECT_THAT(parse(text), StatusIs(kInvalidArgument, HasSubstr("--ids: '"))) << text;
  }
  EXPECT_THAT(parse("1,100"), StatusIs(kInvalidArgument, AllOf(HasSubstr("'100' is no token id"),
                                                               HasSubstr("has 100 ids"))));
  EXPECT_THAT(parse("1,2,3,4"), StatusIs(kInvalidArgument, HasSubstr("4 ids; at most 3")));
}

TEST_F(CtlInputTest, ReadsIdsFromJson) {
  EXPECT_THAT(ReadTokenIds(Write("a.json", " [0, 1,\n 4294967295] ")),
              IsOkAndHolds(ElementsAre(0u, 1u, 4294967295u)));
  EXPECT_THAT(ReadTokenIds(Write("b", "[]")), IsOkAndHolds(IsEmpty()));
}

TEST_F(CtlInputTest, ReadsRawIdsLittleEndian) {
  EXPECT_THAT(ReadTokenIds(Write("a.u32", std::string("\1\0\0\0\0\2\0\0", 8))),
              IsOkAndHolds(ElementsAre(1u, 512u)));
  EXPECT_THAT(ReadTokenIds(Write("b.u32", "12345")),
              StatusIs(kInvalidArgument, HasSubstr("5 bytes, not a multiple of 4")));
}

TEST_F(CtlInputTest, NamesTheElementThatIsNoId) {
  for (const char* text : {"[1, -2]", "[1, 1.5]", "[1, \"2\"]", "[1, 4294967296]", "[1, null]"}) {
    SCOPED_TRACE(text);
    EXPECT_THAT(ReadTokenIds(Write("ids", text)),
                StatusIs(kInvalidArgument, HasSubstr("element 1 is")));
  }
  for (const char* text : {"", "{}", "7", "[1, 2", "text", "[1] [2]"}) {
    SCOPED_TRACE(text);
    EXPECT_THAT(ReadTokenIds(Write("ids", text)),
                StatusIs(kInvalidArgument, HasSubstr("must be a JSON array of token ids")));
  }
}

TEST_F(CtlInputTest, EncodesTextForByteVocabulariesOnly) {
  EXPECT_THAT(EncodeText("A\xff", ByteVocabulary{.first_id = 3}, "m", "--token_ids"),
              IsOkAndHolds(ElementsAre(68u, 258u)));
  EXPECT_THAT(EncodeText("A", std::nullopt, "llama", "--token_ids"),
              StatusIs(kInvalidArgument, AllOf(HasSubstr("'llama'"), HasSubstr("byte vocabulary"),
                                               HasSubstr("--token_ids FILE"))));
}

}  // namespace
}  // namespace kvtier::ctl
