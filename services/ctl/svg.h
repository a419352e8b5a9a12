// A picture as SVG 1.1 text, drawn from the top left corner in pixels. The same calls give the same
// bytes: numbers have at most two decimals, nothing depends on locale or time. Text is escaped.
//
//   Svg svg(400, 300);
//   svg.Rect({10, 10, 50, 20}, "#336699");
//   svg.Text(200, 290, "kept fraction", {.anchor = Svg::Anchor::kMiddle});
//   WriteFile(path, svg.Finish("What the picture shows"));
#ifndef KVTIER_SERVICES_CTL_SVG_H_
#define KVTIER_SERVICES_CTL_SVG_H_

#include <span>
#include <string>

#include "absl/strings/string_view.h"

namespace kvtier::ctl {

// Text content or an attribute's value: & < > " ' escaped, control characters that XML 1.0 forbids
// and bytes that are no UTF-8 replaced by U+FFFD.
std::string EscapeXml(absl::string_view text);

// At most two decimals, no trailing zeros, never "-0": "12", "0.5", "3.14".
std::string FormatCoordinate(double value);

// Not thread-safe.
class Svg {
 public:
  enum class Anchor { kStart, kMiddle, kEnd };
  struct Point {
    double x = 0;
    double y = 0;
  };
  struct Box {
    double x = 0;
    double y = 0;
    double width = 0;
    double height = 0;
  };
  struct TextStyle {
    double size = 12;  // Pixels.
    Anchor anchor = Anchor::kStart;
    const char* color = "#222222";
    bool bold = false;
    double rotate = 0;  // Degrees clockwise, about the text's own point.
  };
  struct LineStyle {
    const char* color = "#222222";
    double width = 1;
    bool dashed = false;
  };

  Svg(double width, double height);

  // `title` shows when the pointer rests on it; empty: none.
  void Rect(Box box, absl::string_view fill, absl::string_view title = "");
  void Frame(Box box, LineStyle style);
  void Line(Point from, Point to, LineStyle style);
  void Polyline(std::span<const Point> points, LineStyle style);
  void Circle(Point center, double radius, absl::string_view fill, absl::string_view title = "");
  void Text(double x, double y, absl::string_view text, TextStyle style);

  // The whole document. `title` names it for those who cannot see it.
  std::string Finish(absl::string_view title) &&;

 private:
  double width_;
  double height_;
  std::string body_;
};

}  // namespace kvtier::ctl

#endif  // KVTIER_SERVICES_CTL_SVG_H_
