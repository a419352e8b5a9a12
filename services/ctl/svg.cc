#include "services/ctl/svg.h"

#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvtier::ctl {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Bytes of the UTF-8 character that `text` begins with; 0 if it begins with none.
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t bytes = first >= 0xF0 ? 4 : (first >= 0xE0 ? 3 : 2);
  if (first < 0xC2 || first > 0xF4 || text.size() < bytes) return 0;
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, past U+10FFFF.
  if (first == 0xE0 && byte(1) < 0xA0) return 0;
  if (first == 0xED && byte(1) > 0x9F) return 0;
  if (first == 0xF0 && byte(1) < 0x90) return 0;
  if (first == 0xF4 && byte(1) > 0x8F) return 0;
  // U+FFFE and U+FFFF are no XML characters.
  if (first == 0xEF && byte(1) == 0xBF && byte(2) >= 0xBE) return 0;
  return bytes;
}

std::string StrokeOf(const Svg::LineStyle& style) {
  return absl::StrCat("stroke=\"", style.color, "\" stroke-width=\"", FormatCoordinate(style.width),
                      "\"", style.dashed ? " stroke-dasharray=\"4 3\"" : "");
}

// An element that may carry a title.
std::string Element(absl::string_view start, absl::string_view name, absl::string_view title) {
  if (title.empty()) return absl::StrCat("<", start, "/>\n");
  return absl::StrCat("<", start, "><title>", EscapeXml(title), "</title></", name, ">\n");
}

}  // namespace

std::string EscapeXml(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t bytes = CharacterBytes(text);
    const char c = text[0];
    if (bytes == 0 || (bytes == 1 && static_cast<uint8_t>(c) < 0x20 && c != '\t' && c != '\n')) {
      absl::StrAppend(&out, kReplacement);
      text.remove_prefix(1);
      continue;
    }
    const absl::string_view character = text.substr(0, bytes);
    const absl::string_view escaped = c == '&'    ? "&amp;"
                                      : c == '<'  ? "&lt;"
                                      : c == '>'  ? "&gt;"
                                      : c == '"'  ? "&quot;"
                                      : c == '\'' ? "&#39;"
                                                  : character;
    absl::StrAppend(&out, escaped);
    text.remove_prefix(bytes);
  }
  return out;
}

std::string FormatCoordinate(double value) {
  std::string text = absl::StrFormat("%.2f", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

Svg::Svg(double width, double height) : width_(width), height_(height) {
  Rect({0, 0, width, height}, "#ffffff");
}

void Svg::Rect(Box box, absl::string_view fill, absl::string_view title) {
  absl::StrAppend(
      &body_,
      Element(absl::StrCat("rect x=\"", FormatCoordinate(box.x), "\" y=\"", FormatCoordinate(box.y),
                           "\" width=\"", FormatCoordinate(box.width), "\" height=\"",
                           FormatCoordinate(box.height), "\" fill=\"", EscapeXml(fill), "\""),
              "rect", title));
}

void Svg::Frame(Box box, LineStyle style) {
  absl::StrAppend(&body_, "<rect x=\"", FormatCoordinate(box.x), "\" y=\"", FormatCoordinate(box.y),
                  "\" width=\"", FormatCoordinate(box.width), "\" height=\"",
                  FormatCoordinate(box.height), "\" fill=\"none\" ", StrokeOf(style), "/>\n");
}

void Svg::Line(Point from, Point to, LineStyle style) {
  absl::StrAppend(&body_, "<line x1=\"", FormatCoordinate(from.x), "\" y1=\"",
                  FormatCoordinate(from.y), "\" x2=\"", FormatCoordinate(to.x), "\" y2=\"",
                  FormatCoordinate(to.y), "\" ", StrokeOf(style), "/>\n");
}

void Svg::Polyline(std::span<const Point> points, LineStyle style) {
  std::string list;
  for (const Point& point : points) {
    absl::StrAppend(&list, list.empty() ? "" : " ", FormatCoordinate(point.x), ",",
                    FormatCoordinate(point.y));
  }
  absl::StrAppend(&body_, "<polyline points=\"", list, "\" fill=\"none\" ", StrokeOf(style),
                  "/>\n");
}

void Svg::Circle(Point center, double radius, absl::string_view fill, absl::string_view title) {
  absl::StrAppend(
      &body_, Element(absl::StrCat("circle cx=\"", FormatCoordinate(center.x), "\" cy=\"",
                                   FormatCoordinate(center.y), "\" r=\"", FormatCoordinate(radius),
                                   "\" fill=\"", EscapeXml(fill), "\""),
                      "circle", title));
}

void Svg::Text(double x, double y, absl::string_view text, TextStyle style) {
  const char* const anchor = style.anchor == Anchor::kStart    ? ""
                             : style.anchor == Anchor::kMiddle ? " text-anchor=\"middle\""
                                                               : " text-anchor=\"end\"";
  const std::string turn =
      style.rotate == 0 ? ""
                        : absl::StrCat(" transform=\"rotate(", FormatCoordinate(style.rotate), " ",
                                       FormatCoordinate(x), " ", FormatCoordinate(y), ")\"");
  absl::StrAppend(&body_, "<text x=\"", FormatCoordinate(x), "\" y=\"", FormatCoordinate(y),
                  "\" font-size=\"", FormatCoordinate(style.size), "\" fill=\"", style.color, "\"",
                  anchor, style.bold ? " font-weight=\"bold\"" : "", turn, ">", EscapeXml(text),
                  "</text>\n");
}

std::string Svg::Finish(absl::string_view title) && {
  const std::string width = FormatCoordinate(width_);
  const std::string height = FormatCoordinate(height_);
  return absl::StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", width, "\" height=\"",
                      height, "\" viewBox=\"0 0 ", width, " ", height,
                      "\" font-family=\"Helvetica, Arial, sans-serif\" role=\"img\">\n<title>",
                      EscapeXml(title), "</title>\n", body_, "</svg>\n");
}

}  // namespace kvtier::ctl
