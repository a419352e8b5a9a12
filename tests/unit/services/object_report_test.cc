#include "services/ctl/object_report.h"

#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/ctl/output.h"
#include "tests/testing/test_object.h"

namespace kvtier::ctl {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Three layers of two heads, 60 tokens, masses 3, 1 and 0 with the middle edge measured.
Manifest MakeManifest() {
  Manifest m = *MakeTestObject({.edges = "0.3,0.5,1"}).manifest;
  m.bands[0].score_mass = 3;
  m.bands[1].score_mass = 1;
  m.bands[2].score_mass = 0;
  m.fidelity = Fidelity{2, 50, {std::nullopt, 40, std::nullopt}};
  return m;
}

v1::ObjectSummary MakeSummary(const Manifest& m) {
  v1::ObjectSummary summary;
  summary.set_dense_bytes(m.dense_bytes());
  summary.set_host_bands(1);
  summary.set_disk_bands(2);
  summary.set_resident_bands(2);
  for (const BandEntry& band : m.bands) {
    summary.add_bands()->set_edge_millionths(band.edge.millionths());
  }
  return summary;
}

TEST(ObjectReportTest, CountsRowsBytesAndMass) {
  const Manifest m = MakeManifest();
  const ObjectReport report = MakeReport(m);
  ASSERT_EQ(report.bands.size(), 3u);
  EXPECT_EQ(report.layers, (std::vector<uint32_t>{0, 1, 2}));
  EXPECT_EQ(report.kv_heads, 2u);
  for (uint32_t b = 0; b < 3; ++b) {
    EXPECT_EQ(report.bands[b].edge, m.bands[b].edge);
    EXPECT_EQ(report.bands[b].bytes, m.PrefixBytes(b + 1));
    EXPECT_EQ(report.bands[b].rows, m.RankEnd(m.bands[b].edge));
    double kept = 0;
    for (const double share : report.kept[b]) kept += share * 60;
    EXPECT_NEAR(kept, static_cast<double>(report.bands[b].rows), 1e-9);
  }
  EXPECT_EQ(report.bands[0].mass_share, 0.75);
  EXPECT_EQ(report.bands[1].mass_below, 1.0);
  EXPECT_EQ(report.bands[2].mass_share, 0.0);
  EXPECT_EQ(report.bands[0].accuracy, std::nullopt);
  EXPECT_EQ(report.bands[1].accuracy, 0.8);
  EXPECT_EQ(report.kept[2], std::vector<double>(6, 1.0));
}

TEST(ObjectReportTest, OfNoMassOrNoScoredLayerHasNoShares) {
  Manifest m = MakeManifest();
  for (BandEntry& band : m.bands) band.score_mass = 0;
  for (const BandReport& band : MakeReport(m).bands) EXPECT_EQ(band.mass_below, 0);
  ObjectReport none;
  none.bands.resize(1);
  none.kept.resize(1);
  EXPECT_THAT(PlotReport(none, m), StartsWith("<svg "));
}

TEST(ObjectReportTest, TheTableHasAColumnForWhatWasMeasured) {
  Manifest m = MakeManifest();
  m.bands[2].threshold = std::numeric_limits<float>::infinity();
  const std::string table = FormatReport(MakeReport(m), MakeSummary(m));
  EXPECT_THAT(table, AllOf(HasSubstr("repeats"), ContainsRegex("0.5 .* 25.0 % +100.0 % +80.0 % +"),
                           ContainsRegex("0.3 .* - +host.disk\n"), ContainsRegex("1 .* gone\n")));
  m.fidelity.reset();
  EXPECT_THAT(FormatReport(MakeReport(m), MakeSummary(m)), Not(HasSubstr("repeats")));
}

TEST(ObjectReportTest, EveryHeadIsInOneBin) {
  const ObjectReport report = MakeReport(MakeManifest());
  const std::string all = FormatHeads(report, 2);
  EXPECT_THAT(all, AllOf(StartsWith("heads by what they keep at ratio 1, of 6\n"),
                         HasSubstr(" 90-100 %      6  ########"), HasSubstr("  0- 10 %      0\n")));
  EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), 11);
}

TEST(ObjectReportTest, JsonHasWhatTheTableHas) {
  const Manifest m = MakeManifest();
  nlohmann::json json = ToJson(MakeSummary(m));
  AddReport(MakeReport(m), m, json);
  EXPECT_EQ(json["bands"][1]["accuracy"], 0.8);
  EXPECT_FALSE(json["bands"][0].contains("accuracy"));
  EXPECT_EQ(json["bands"][0]["score_mass_share"], 0.75);
  EXPECT_EQ(json["bands"][2]["kept"], nlohmann::json({{1, 1}, {1, 1}, {1, 1}}));
  EXPECT_EQ(json["fidelity"]["tokens"], 50);
  EXPECT_EQ(json["scored_layers"].size(), 3u);
}

TEST(ObjectReportTest, ThePictureHasEveryHeadAndPointAndIsTheSameEachTime) {
  Manifest m = MakeManifest();
  m.model_name = "a<b>&\"c\"";
  const std::string svg = PlotReport(MakeReport(m), m);
  EXPECT_EQ(svg, PlotReport(MakeReport(m), m));
  EXPECT_THAT(svg, AllOf(StartsWith("<svg "), EndsWith("</svg>\n"),
                         HasSubstr("model a&lt;b&gt;&amp;&quot;c&quot;"), HasSubstr("KV head"),
                         HasSubstr(">layer<"), HasSubstr("rows kept"),
                         HasSubstr("ratio (fraction of context KV pairs kept)"),
                         HasSubstr("ratio 0.5: 80.0 % of the tokens repeated")));
  const auto count = [&](absl::string_view what) {
    return std::vector<std::string>(absl::StrSplit(svg, what)).size() - 1;
  };
  EXPECT_EQ(count("<title>layer "), 2u * 6);  // Edges 0.3 and 0.5; at 1 there is nothing to see.
  EXPECT_EQ(count("of the score mass</title>"), 3u);
  EXPECT_EQ(count("<text"), count("</text>"));
  EXPECT_EQ(count("nan"), 0u);
  EXPECT_EQ(count("inf"), 0u);
}

}  // namespace
}  // namespace kvtier::ctl
