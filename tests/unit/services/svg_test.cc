#include "services/ctl/svg.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier::ctl {
namespace {

using ::testing::HasSubstr;

TEST(SvgTest, DrawsWhatItIsTold) {
  Svg svg(40, 30.5);
  svg.Rect({1, 2, 3.456, 4}, "#336699", "a \"title\"");
  svg.Line({0, 0}, {40, 30}, {.color = "#000000", .width = 1.5, .dashed = true});
  const Svg::Point points[] = {{1, 1}, {2, 2.25}};
  svg.Polyline(points, {.color = "#111111"});
  svg.Circle({5, 6}, 2, "#222222");
  svg.Frame({1, 1, 2, 2}, {.color = "#333333"});
  svg.Text(7, 8, "a < b & c", {.anchor = Svg::Anchor::kEnd, .bold = true, .rotate = -90});
  EXPECT_EQ(
      std::move(svg).Finish("x > y"),
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"30.5\" "
      "viewBox=\"0 0 40 30.5\" font-family=\"Helvetica, Arial, sans-serif\" role=\"img\">\n"
      "<title>x &gt; y</title>\n"
      "<rect x=\"0\" y=\"0\" width=\"40\" height=\"30.5\" fill=\"#ffffff\"/>\n"
      "<rect x=\"1\" y=\"2\" width=\"3.46\" height=\"4\" fill=\"#336699\">"
      "<title>a &quot;title&quot;</title></rect>\n"
      "<line x1=\"0\" y1=\"0\" x2=\"40\" y2=\"30\" stroke=\"#000000\" stroke-width=\"1.5\" "
      "stroke-dasharray=\"4 3\"/>\n"
      "<polyline points=\"1,1 2,2.25\" fill=\"none\" stroke=\"#111111\" stroke-width=\"1\"/>\n"
      "<circle cx=\"5\" cy=\"6\" r=\"2\" fill=\"#222222\"/>\n"
      "<rect x=\"1\" y=\"1\" width=\"2\" height=\"2\" fill=\"none\" stroke=\"#333333\" "
      "stroke-width=\"1\"/>\n"
      "<text x=\"7\" y=\"8\" font-size=\"12\" fill=\"#222222\" text-anchor=\"end\" "
      "font-weight=\"bold\" transform=\"rotate(-90 7 8)\">a &lt; b &amp; c</text>\n"
      "</svg>\n");
}

TEST(SvgTest, CoordinatesAreShort) {
  EXPECT_EQ(FormatCoordinate(12), "12");
  EXPECT_EQ(FormatCoordinate(100), "100");
  EXPECT_EQ(FormatCoordinate(0.5), "0.5");
  EXPECT_EQ(FormatCoordinate(3.14159), "3.14");
  EXPECT_EQ(FormatCoordinate(-0.001), "0");
  EXPECT_EQ(FormatCoordinate(-2.5), "-2.5");
}

TEST(SvgTest, TextIsAlwaysXml) {
  EXPECT_EQ(EscapeXml("<a href='x'>\"&\"</a>"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;&lt;/a&gt;");
  EXPECT_EQ(EscapeXml("caf\xC3\xA9 \xE6\x9D\xB1 \xF0\x9F\x98\x80"),
            "caf\xC3\xA9 \xE6\x9D\xB1 \xF0\x9F\x98\x80");
  const std::string replaced = "\xEF\xBF\xBD";
  // Control characters, a lone continuation, overlong, surrogate, past the end, cut off, U+FFFF.
  for (const absl::string_view bad : {absl::string_view("\0", 1), absl::string_view("\x1F"),
                                      absl::string_view("\x80"), absl::string_view("\xC0")}) {
    EXPECT_EQ(EscapeXml(bad), replaced);
  }
  for (const char* bad : {"\xE0\x80\x80", "\xED\xA0\x80", "\xEF\xBF\xBF"}) {
    EXPECT_EQ(EscapeXml(bad), replaced + replaced + replaced);
  }
  EXPECT_THAT(EscapeXml("\xF4\x90\x80\x80"), HasSubstr(replaced));
  EXPECT_EQ(EscapeXml("\xE6\x9D"), replaced + replaced);
  EXPECT_EQ(EscapeXml("a\tb\nc"), "a\tb\nc");
}

}  // namespace
}  // namespace kvtier::ctl
