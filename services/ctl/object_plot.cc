// PlotReport of object_report.h: two rows of panels. Above, kept fraction by layer and head, a heat
// map for each edge; below, score mass against ratio.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/ctl/object_report.h"
#include "services/ctl/output.h"
#include "services/ctl/svg.h"

namespace kvtier::ctl {
namespace {

using Anchor = Svg::Anchor;

constexpr double kMargin = 24;
constexpr double kAxis = 46;  // Room for an axis' numbers and name.
constexpr double kPanelGap = 18;
constexpr double kTitleHeight = 62;
constexpr double kPanelTitle = 22;
constexpr double kScaleWidth = 14;  // Of the bar that explains the colours.
constexpr double kScaleRoom = 76;
constexpr double kCurveWidth = 520;
constexpr double kCurveHeight = 260;
constexpr double kRowGap = 34;  // Between the heat maps' axis and the curve's title.
constexpr double kSmall = 11;
constexpr size_t kPanelsMax = 6;

constexpr const char* kInk = "#222222";
constexpr const char* kGrey = "#777777";
constexpr const char* kGrid = "#dddddd";
constexpr const char* kMassColor = "#0072b2";      // Blue and vermilion of Okabe and Ito: apart for
constexpr const char* kAccuracyColor = "#d55e00";  // colour-blind eyes and in grey.

// Light to dark, so that it reads in grey too: a polyline through five colours.
std::string HeatColor(double share) {
  constexpr std::array<std::array<int, 3>, 5> kStops = {
      {{247, 251, 255}, {198, 219, 239}, {107, 174, 214}, {33, 113, 181}, {8, 48, 107}}};
  const double at = std::clamp(share, 0.0, 1.0) * (kStops.size() - 1);
  const size_t low = std::min(kStops.size() - 2, static_cast<size_t>(at));
  std::array<int, 3> color;
  for (size_t c = 0; c < 3; ++c) {
    color[c] = static_cast<int>(std::lround(
        kStops[low][c] + (at - static_cast<double>(low)) * (kStops[low + 1][c] - kStops[low][c])));
  }
  return absl::StrFormat("#%02x%02x%02x", color[0], color[1], color[2]);
}

// Ticks of an axis of `count` items: 0, then steps of 1, 2, 5, 10, .. so that at most `most` fit.
std::vector<uint32_t> IndexTicks(uint32_t count, uint32_t most) {
  uint32_t step = 1;
  for (uint32_t i = 0; count / step > most; ++i) step = step * (i % 3 == 1 ? 5 : 4) / 2;
  std::vector<uint32_t> ticks;
  for (uint32_t at = 0; at < count; at += step) ticks.push_back(at);
  return ticks;
}

struct HeatSize {
  double cell_width = 0;
  double cell_height = 0;
  double width = 0;
  double height = 0;
};
HeatSize SizeOf(const ObjectReport& report) {
  HeatSize size;
  const double layers = std::max<double>(1, static_cast<double>(report.layers.size()));
  const double heads = std::max<double>(1, report.kv_heads);
  size.cell_height = std::clamp(240 / layers, 3.0, 26.0);
  size.cell_width = std::clamp(120 / heads, 3.0, 26.0);
  size.width = std::max(84.0, size.cell_width * heads);  // The panel's title must fit.
  size.cell_width = size.width / heads;
  size.height = size.cell_height * layers;
  return size;
}

void DrawHeatMap(Svg& svg, const ObjectReport& report, size_t band, const HeatSize& size, double x,
                 double y, bool with_layers) {
  const double top = y + kPanelTitle;
  svg.Text(x + size.width / 2, y + 14, absl::StrCat("ratio ", report.bands[band].edge.ToString()),
           {.anchor = Anchor::kMiddle, .bold = true});
  for (size_t layer = 0; layer < report.layers.size(); ++layer) {
    for (uint32_t head = 0; head < report.kv_heads; ++head) {
      const double kept = report.kept[band][layer * report.kv_heads + head];
      svg.Rect(
          {x + head * size.cell_width, top + static_cast<double>(layer) * size.cell_height,
           size.cell_width, size.cell_height},
          HeatColor(kept),
          absl::StrFormat("layer %d, head %d: %.1f %%", report.layers[layer], head, 100 * kept));
    }
  }
  svg.Frame({x, top, size.width, size.height}, {.color = kGrey});
  for (const uint32_t head : IndexTicks(report.kv_heads, 8)) {
    svg.Text(x + (head + 0.5) * size.cell_width, top + size.height + 15, absl::StrCat(head),
             {.size = kSmall, .anchor = Anchor::kMiddle});
  }
  svg.Text(x + size.width / 2, top + size.height + 32, "KV head",
           {.size = kSmall, .anchor = Anchor::kMiddle});
  if (!with_layers) return;
  for (const uint32_t row : IndexTicks(static_cast<uint32_t>(report.layers.size()), 16)) {
    svg.Text(x - 6, top + (row + 0.5) * size.cell_height + 4, absl::StrCat(report.layers[row]),
             {.size = kSmall, .anchor = Anchor::kEnd});
  }
  svg.Text(x - 32, top + size.height / 2, "layer",
           {.size = kSmall, .anchor = Anchor::kMiddle, .rotate = -90});
}

void DrawScale(Svg& svg, double x, double top, double height) {
  constexpr int kSteps = 50;
  for (int step = 0; step < kSteps; ++step) {
    svg.Rect({x, top + height * (kSteps - 1 - step) / kSteps, kScaleWidth, height / kSteps + 0.5},
             HeatColor((step + 0.5) / kSteps));
  }
  svg.Frame({x, top, kScaleWidth, height}, {.color = kGrey});
  for (const int percent : {0, 50, 100}) {
    svg.Text(x + kScaleWidth + 5, top + height * (100 - percent) / 100 + 4,
             absl::StrCat(percent, " %"), {.size = kSmall});
  }
  svg.Text(x + kScaleWidth + 48, top + height / 2, "rows kept",
           {.size = kSmall, .anchor = Anchor::kMiddle, .rotate = -90});
}

void DrawCurve(Svg& svg, const ObjectReport& report, double x, double y) {
  const double top = y + kPanelTitle;
  const auto at = [&](double ratio, double share) {
    return Svg::Point{x + ratio * kCurveWidth, top + (1 - share) * kCurveHeight};
  };
  const bool measured = std::any_of(report.bands.begin(), report.bands.end(),
                                    [](const BandReport& b) { return b.accuracy.has_value(); });
  svg.Text(x, y + 14,
           measured ? "Score mass kept, and tokens repeated from what is kept" : "Score mass kept",
           {.bold = true});
  for (int tick = 0; tick <= 10; tick += 2) {
    const double share = tick / 10.0;
    svg.Line(at(0, share), at(1, share), {.color = kGrid});
    svg.Line(at(share, 0), at(share, 1), {.color = kGrid});
    svg.Text(x - 6, at(0, share).y + 4, absl::StrCat(10 * tick, " %"),
             {.size = kSmall, .anchor = Anchor::kEnd});
    svg.Text(at(share, 0).x, top + kCurveHeight + 15, FormatCoordinate(share),
             {.size = kSmall, .anchor = Anchor::kMiddle});
  }
  svg.Text(x + kCurveWidth / 2, top + kCurveHeight + 32,
           "ratio (fraction of context KV pairs kept)",
           {.size = kSmall, .anchor = Anchor::kMiddle});
  svg.Line(at(0, 0), at(1, 1), {.color = kGrey, .dashed = true});

  std::vector<Svg::Point> mass = {at(0, 0)};
  std::vector<Svg::Point> accuracy;
  for (const BandReport& band : report.bands) {
    const double ratio = band.edge.ToDouble();
    mass.push_back(at(ratio, std::min(1.0, band.mass_below)));
    if (band.accuracy.has_value()) accuracy.push_back(at(ratio, *band.accuracy));
  }
  svg.Polyline(mass, {.color = kMassColor, .width = 2});
  svg.Polyline(accuracy, {.color = kAccuracyColor, .width = 2});
  svg.Frame({x, top, kCurveWidth, kCurveHeight}, {.color = kGrey});
  for (const BandReport& band : report.bands) {
    const double ratio = band.edge.ToDouble();
    svg.Circle(at(ratio, std::min(1.0, band.mass_below)), 3.5, kMassColor,
               absl::StrFormat("ratio %s: %.1f %% of the score mass", band.edge.ToString(),
                               100 * band.mass_below));
    if (!band.accuracy.has_value()) continue;
    svg.Circle(at(ratio, *band.accuracy), 3.5, kAccuracyColor,
               absl::StrFormat("ratio %s: %.1f %% of the tokens repeated", band.edge.ToString(),
                               100 * *band.accuracy));
  }

  // The legend stands beside the panel: no curve is under it.
  struct Entry {
    const char* name;
    Svg::LineStyle style;
  };
  std::vector<Entry> entries = {{"score mass", {.color = kMassColor, .width = 2}}};
  if (!accuracy.empty()) {
    entries.push_back({"tokens repeated", {.color = kAccuracyColor, .width = 2}});
  }
  entries.push_back({"if all pairs were alike", {.color = kGrey, .dashed = true}});
  for (size_t i = 0; i < entries.size(); ++i) {
    const double line_y = top + 12 + 20 * static_cast<double>(i);
    const double left = x + kCurveWidth + 18;
    svg.Line({left, line_y}, {left + 24, line_y}, entries[i].style);
    svg.Text(left + 31, line_y + 4, entries[i].name, {.size = kSmall, .color = kInk});
  }
}

}  // namespace

std::string PlotReport(const ObjectReport& report, const Manifest& m) {
  // At the last edge of a whole object everything is kept: nothing to see. Of many edges, the
  // first.
  std::vector<size_t> shown;
  for (size_t b = 0; b < report.bands.size() && shown.size() < kPanelsMax; ++b) {
    if (report.bands[b].edge != Ratio()) shown.push_back(b);
  }
  if (shown.empty()) shown.push_back(report.bands.size() - 1);

  const HeatSize size = SizeOf(report);
  const double heats_width =
      static_cast<double>(shown.size()) * (size.width + kPanelGap) - kPanelGap;
  const double heats_height = kPanelTitle + size.height + 40;
  const double width = std::max(kMargin + kAxis + heats_width + kScaleRoom + kMargin,
                                kMargin + kAxis + kCurveWidth + 190);
  const double curve_y = kTitleHeight + heats_height + kRowGap;
  Svg svg(width, curve_y + kPanelTitle + kCurveHeight + 40 + kMargin / 2);

  const std::string title = absl::StrCat("Object ", m.key.ToHex().substr(0, 12), "..: model ",
                                         m.model_name, ", recipe ", m.recipe);
  svg.Text(kMargin, 28, title, {.size = 15, .bold = true});
  svg.Text(kMargin, 47,
           absl::StrFormat("%d context tokens, %d protected, %d scored layers x %d KV heads; rows "
                           "kept by layer and head:",
                           m.context_tokens, m.protected_tokens(), report.layers.size(),
                           report.kv_heads),
           {.color = kGrey});
  double x = kMargin + kAxis;
  for (const size_t band : shown) {
    DrawHeatMap(svg, report, band, size, x, kTitleHeight, band == shown.front());
    x += size.width + kPanelGap;
  }
  DrawScale(svg, x, kTitleHeight + kPanelTitle, std::max(60.0, size.height));
  DrawCurve(svg, report, kMargin + kAxis, curve_y);
  return std::move(svg).Finish(title);
}

}  // namespace kvtier::ctl
