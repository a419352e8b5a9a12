// How good answers from a cache of some ratio are, against the whole cache: 1 at ratio 1, 0 at
// ratio 0, straight lines between measured points. Immutable.
#ifndef KVTIER_BENCH_RETENTION_QUALITY_CURVE_H_
#define KVTIER_BENCH_RETENTION_QUALITY_CURVE_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier::bench {

class QualityCurve {
 public:
  struct Point {
    double ratio = 0;  // Kept fraction, in (0, 1].
    double quality = 0;
  };

  // INVALID_ARGUMENT unless ratios rise up to 1, qualities do not fall, and the last one is 1.
  static absl::StatusOr<QualityCurve> Create(std::vector<Point> points);
  // {"points": [{"ratio": 0.1, "quality": 0.9}, ...]}; other fields say where it comes from.
  static absl::StatusOr<QualityCurve> Parse(absl::string_view json);
  // One under which a small ratio is worth nothing: 0.1 -> 0, 0.3 -> 0.9. Not measured: it stands
  // for a model or a task that compression hurts.
  static QualityCurve Steep();

  // REQUIRES: 0 <= ratio <= 1.
  double At(double ratio) const;

 private:
  explicit QualityCurve(std::vector<Point> points) : points_(std::move(points)) {}
  std::vector<Point> points_;
};

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_RETENTION_QUALITY_CURVE_H_
