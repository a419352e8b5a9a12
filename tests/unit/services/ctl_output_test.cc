#include <string>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/ctl/output.h"

namespace kvtier::ctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Two of three bands left, the first of them in host memory too.
v1::ObjectSummary MakeSummary() {
  v1::ObjectSummary object;
  object.mutable_name()->set_key(std::string(32, '\x0a'));
  object.mutable_name()->set_upload_id(std::string(16, '\xff'));
  object.set_model("tiny");
  object.set_recipe("kvzip/1");
  object.set_system_tokens(3);
  object.set_context_tokens(100);
  object.set_dense_bytes(1000);
  const uint32_t edges[] = {100'000, 300'000, 1'000'000};
  for (const uint32_t edge : edges) {
    v1::BandSummary& band = *object.add_bands();
    band.set_edge_millionths(edge);
    band.set_bytes(edge / 1000);
    band.set_threshold(-1.5f);
    band.set_score_mass(2.5);
  }
  object.set_resident_bands(2);
  object.set_host_bands(1);
  object.set_disk_bands(2);
  object.set_durability(v1::DURABILITY_DISK);
  object.set_sealed_unix_ms(1234);
  return object;
}

TEST(FormatTableTest, AlignsNumbersRightAndTextLeft) {
  EXPECT_EQ(FormatTable({{"name", "bytes", "x"}, {"a", "7", "y"}, {"long name", "1234", ""}}),
            "name       bytes  x\n"
            "a              7  y\n"
            "long name   1234\n");
  EXPECT_EQ(FormatTable({{"only", "heading"}}), "only  heading\n");
  EXPECT_EQ(FormatTable({}), "");
}

TEST(FormatBytesTest, UsesPowersOfTen) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1 kB");
  EXPECT_EQ(FormatBytes(3'440'000), "3.44 MB");
  EXPECT_EQ(FormatBytes(999'600), "1 MB");
  EXPECT_EQ(FormatBytes(5'000'000'000'000'000), "5e+03 TB");
}

TEST(FormatRatioTest, IsShort) {
  EXPECT_EQ(FormatRatio(300'000), "0.3");
  EXPECT_EQ(FormatRatio(1'000'000), "1");
  EXPECT_EQ(FormatRatio(0), "0e-6");  // No ratio; shown, not hidden.
}

TEST(ToJsonTest, HasEveryFieldOfTheSummary) {
  const nlohmann::json json = ToJson(MakeSummary());
  EXPECT_EQ(json["key"], "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a");
  EXPECT_EQ(json["upload_id"], std::string(32, 'f'));
  EXPECT_EQ(json["model"], "tiny");
  EXPECT_EQ(json["recipe"], "kvzip/1");
  EXPECT_EQ(json["system_tokens"], 3);
  EXPECT_EQ(json["context_tokens"], 100);
  EXPECT_EQ(json["dense_bytes"], 1000);
  ASSERT_EQ(json["bands"].size(), 3);
  EXPECT_EQ(json["bands"][1]["ratio"], 0.3);
  EXPECT_EQ(json["bands"][1]["bytes"], 300);
  EXPECT_EQ(json["bands"][1]["threshold"], -1.5);
  EXPECT_EQ(json["bands"][1]["score_mass"], 2.5);
  EXPECT_EQ(json["resident_bands"], 2);
  EXPECT_EQ(json["host_bands"], 1);
  EXPECT_EQ(json["disk_bands"], 2);
  EXPECT_EQ(json["durability"], "disk");
  EXPECT_EQ(json["sealed_unix_ms"], 1234);
}

TEST(DumpTest, ReplacesWhatIsNoText) {
  EXPECT_EQ(Dump({{"answer", "a\xf7\n"}}), "{\"answer\":\"a\xef\xbf\xbd\\n\"}");
}

TEST(FormatBandsTest, CountsBytesUpToEachBandAndSaysWhereItIs) {
  const std::vector<std::string> lines = absl::StrSplit(FormatBands(MakeSummary()), '\n');
  ASSERT_EQ(lines.size(), 5);
  const auto words = [&](size_t line) {
    return std::vector<std::string>(absl::StrSplit(lines[line], ' ', absl::SkipEmpty()));
  };
  EXPECT_THAT(words(1), ElementsAre("0.1", "100", "10.0", "%", "-1.500", "host+disk"));
  EXPECT_THAT(words(2), ElementsAre("0.3", "400", "40.0", "%", "-1.500", "disk"));
  EXPECT_THAT(words(3), ElementsAre("1", "1400", "140.0", "%", "-1.500", "gone"));
}

TEST(ProgressBarTest, PrintsPlainLinesPerStageAndTenthWhenPiped) {
  ::testing::internal::CaptureStderr();
  {
    ProgressBar bar;
    for (uint64_t done = 0; done <= 100; ++done) bar.Update("prefill", done, 100);
    bar.Update("upload", 0, 0);
    bar.Update("upload", 5, 0);
  }
  const std::string text = ::testing::internal::GetCapturedStderr();
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 12) << text;
  EXPECT_EQ(lines[0], "prefill 0/100");
  EXPECT_EQ(lines[10], "prefill 100/100");
  EXPECT_EQ(lines[11], "upload 0/0");
  EXPECT_THAT(text, ::testing::Not(HasSubstr("\r")));
}

}  // namespace
}  // namespace kvtier::ctl
