// kvtier-bench retention: reads the trace and the curve, sweeps.

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "bench/retention/quality_curve.h"
#include "bench/retention/request_trace.h"
#include "bench/retention/sweep.h"
#include "bench/suite.h"

namespace kvtier::bench {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || !text) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return text.str();
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

Row ToRow(const RetentionRow& row) {
  Row out{row.name(), row.value, row.limit > 0 ? "of blocks asked" : "GB"};
  if (row.limit > 0) {
    out.limit = row.limit;
    out.limit_name = "everything fits";
  }
  if (row.target.has_value()) {
    out.target = Target::AtLeast(*row.target);
    out.target->is_required = row.required;
  }
  return out;
}

}  // namespace

absl::StatusOr<SuiteResult> RunRetentionSuite(const RetentionOptions& options) {
  if (options.trace.empty()) return absl::InvalidArgumentError("retention: --trace is missing");
  KVTIER_ASSIGN_OR_RETURN(const std::string trace_text, ReadFile(options.trace));
  KVTIER_ASSIGN_OR_RETURN(const std::string curve_text, ReadFile(options.curve));
  const absl::StatusOr<RequestTrace> trace = ParseRequestTrace(trace_text);
  if (!trace.ok()) return InFile(options.trace, trace.status());
  const absl::StatusOr<QualityCurve> curve = QualityCurve::Parse(curve_text);
  if (!curve.ok()) return InFile(options.curve, curve.status());

  std::vector<uint64_t> capacities;
  for (const double gib : options.capacities_gib) {
    if (!(gib > 0 && gib < 1e9)) {
      return absl::InvalidArgumentError(absl::StrCat("retention: no capacity of ", gib, " GiB"));
    }
    capacities.push_back(static_cast<uint64_t>(gib * static_cast<double>(limits::kGiB)));
  }
  if (capacities.empty()) capacities = DefaultCapacities(*trace);

  const bool terminal = isatty(fileno(stderr)) != 0;
  KVTIER_ASSIGN_OR_RETURN(const std::vector<RetentionRow> rows,
                          SweepRetention(*trace, *curve, capacities, [&](double done) {
                            if (terminal) std::fprintf(stderr, "\r%3.0f%%", 100 * done);
                          }));
  if (terminal) std::fprintf(stderr, "\r    \r");

  SuiteResult result;
  for (const RetentionRow& row : rows) result.rows.push_back(ToRow(row));
  result.table = absl::StrCat(trace->size(), " requests\n\n", RetentionTable(rows));
  result.facts = {{"requests", static_cast<double>(trace->size())}};
  return result;
}

}  // namespace kvtier::bench
