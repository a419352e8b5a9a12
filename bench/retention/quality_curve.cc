#include "bench/retention/quality_curve.h"

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvtier::bench {

absl::StatusOr<QualityCurve> QualityCurve::Create(std::vector<Point> points) {
  Point before;
  for (const Point& point : points) {
    // Written so that NaN fails.
    if (!(point.ratio > before.ratio && point.ratio <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "quality curve: ratio ", point.ratio, " after ", before.ratio, ": ratios rise up to 1"));
    }
    if (!(point.quality >= before.quality && point.quality <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("quality curve: quality ", point.quality,
                                                     " at ratio ", point.ratio, " after ",
                                                     before.quality, ": qualities rise up to 1"));
    }
    before = point;
  }
  if (before.ratio != 1 || before.quality != 1) {
    return absl::InvalidArgumentError("quality curve: the last point is not ratio 1, quality 1");
  }
  return QualityCurve(std::move(points));
}

absl::StatusOr<QualityCurve> QualityCurve::Parse(absl::string_view text) {
  const nlohmann::json json =
      nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  const auto list = json.is_object() ? json.find("points") : json.end();
  if (!json.is_object() || list == json.end() || !list->is_array()) {
    return absl::InvalidArgumentError("quality curve: no list of points");
  }
  std::vector<Point> points;
  for (const nlohmann::json& point : *list) {
    if (!point.is_object() || !point.contains("ratio") || !point["ratio"].is_number() ||
        !point.contains("quality") || !point["quality"].is_number()) {
      return absl::InvalidArgumentError("quality curve: a point without ratio or quality");
    }
    points.push_back({point["ratio"].get<double>(), point["quality"].get<double>()});
  }
  return Create(std::move(points));
}

QualityCurve QualityCurve::Steep() { return QualityCurve({{0.1, 0}, {0.3, 0.9}, {1, 1}}); }

double QualityCurve::At(double ratio) const {
  Point before;
  for (const Point& point : points_) {
    if (ratio == point.ratio) return point.quality;  // Free of rounding where it was measured.
    if (ratio < point.ratio) {
      return before.quality + (point.quality - before.quality) * (ratio - before.ratio) /
                                  (point.ratio - before.ratio);
    }
    before = point;
  }
  return before.quality;
}

}  // namespace kvtier::bench
