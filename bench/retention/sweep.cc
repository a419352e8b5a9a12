#include "bench/retention/sweep.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "bench/retention/replay.h"

namespace kvtier::bench {
namespace {

constexpr double kFixedRatios[] = {1.0, 0.6, 0.3, 0.1};

struct NamedScheme {
  std::string name;
  ObjectScheme scheme;  // No edges: dense blocks.
};

std::vector<NamedScheme> Schemes() {
  const std::vector<double> edges = {0.1, 0.2, 0.3, 0.4, 0.6, 1.0};
  std::vector<NamedScheme> schemes = {{"banded_gdsf", {edges, "gdsf"}},
                                      {"banded_lru", {edges, "lru"}}};
  for (const char* policy : {"lru", "gdsf"}) {
    for (const double ratio : kFixedRatios) {
      schemes.push_back({absl::StrFormat("whole_%.1f_%s", ratio, policy), {{ratio}, policy}});
    }
  }
  schemes.push_back({"dense_blocks_lru", {}});
  return schemes;
}

bool IsBanded(absl::string_view scheme) { return absl::StartsWith(scheme, "banded_"); }
bool IsFixedLru(absl::string_view scheme) {
  return absl::StartsWith(scheme, "whole_") && absl::EndsWith(scheme, "_lru");
}

absl::StatusOr<ReplayResult> Replay(const RequestTrace& trace, const NamedScheme& scheme,
                                    const QualityCurve& curve, uint64_t capacity_bytes) {
  if (scheme.scheme.edges.empty()) return ReplayDenseBlocks(trace, capacity_bytes);
  return ReplayObjects(trace, scheme.scheme, curve, capacity_bytes);
}

// Sets the targets among the rows of one capacity and one weighted column.
void SetTargets(absl::string_view column, double limit, std::vector<RetentionRow>& rows,
                size_t first) {
  double best = 0;
  for (size_t i = first; i < rows.size(); ++i) {
    if (rows[i].column == column && IsFixedLru(rows[i].scheme))
      best = std::max(best, rows[i].value);
  }
  for (size_t i = first; i < rows.size(); ++i) {
    if (rows[i].column != column || !IsBanded(rows[i].scheme)) continue;
    rows[i].target = best * (best < limit / 2 ? kLowBestShare : kBestShare);
    rows[i].required = rows[i].scheme == "banded_gdsf";
  }
}

// One table: a line per capacity, the schemes side by side.
std::string Table(const std::vector<RetentionRow>& rows, absl::string_view column) {
  std::vector<std::string> schemes;
  std::vector<uint64_t> capacities;
  std::map<std::pair<uint64_t, std::string>, const RetentionRow*> cells;
  for (const RetentionRow& row : rows) {
    if (row.column != column) continue;
    if (std::find(schemes.begin(), schemes.end(), row.scheme) == schemes.end()) {
      schemes.push_back(row.scheme);
    }
    if (capacities.empty() || capacities.back() != row.capacity_bytes) {
      capacities.push_back(row.capacity_bytes);
    }
    cells[{row.capacity_bytes, row.scheme}] = &row;
  }
  std::string text = absl::StrFormat("\n%-12s", "capacity");
  for (const std::string& scheme : schemes) absl::StrAppendFormat(&text, " %10s", scheme);
  text += "\n";
  for (const uint64_t capacity : capacities) {
    absl::StrAppendFormat(&text, "%-12s", CapacityName(capacity));
    for (const std::string& scheme : schemes) {
      const RetentionRow& row = *cells.at({capacity, scheme});
      const int width = std::max<int>(10, static_cast<int>(scheme.size()));
      absl::StrAppendFormat(&text, " %*s", width,
                            absl::StrFormat("%.4f%s", row.value,
                                            !row.target.has_value() ? ""
                                            : row.pass()            ? " ok"
                                                                    : " --"));
    }
    text += "\n";
  }
  return text;
}

}  // namespace

std::string RetentionRow::name() const {
  return absl::StrCat(scheme, "/", CapacityName(capacity_bytes), "/", column);
}

std::string CapacityName(uint64_t bytes) {
  if (bytes % limits::kGiB == 0) return absl::StrCat(bytes / limits::kGiB, "GiB");
  return absl::StrFormat("%.3fGiB", static_cast<double>(bytes) / static_cast<double>(limits::kGiB));
}

std::vector<uint64_t> DefaultCapacities(const RequestTrace& trace) {
  constexpr int kCount = 10;
  uint64_t largest = limits::kGiB;
  while (largest < BytesOfAllObjects(trace)) largest *= 2;
  std::vector<uint64_t> capacities;
  for (int i = kCount - 1; i >= 0; --i) capacities.push_back(largest >> i);
  return capacities;
}

absl::StatusOr<std::vector<RetentionRow>> SweepRetention(const RequestTrace& trace,
                                                         const QualityCurve& curve,
                                                         const std::vector<uint64_t>& capacities,
                                                         absl::FunctionRef<void(double)> progress) {
  const std::vector<NamedScheme> schemes = Schemes();
  const std::pair<const QualityCurve, std::string> curves[] = {{curve, ""},
                                                               {QualityCurve::Steep(), "_steep"}};
  KVTIER_ASSIGN_OR_RETURN(const ReplayResult everything,
                          ReplayObjects(trace, {{1.0}, "lru"}, curve, BytesOfAllObjects(trace)));
  std::vector<RetentionRow> rows;
  for (size_t i = 0; i < capacities.size(); ++i) {
    const size_t first = rows.size();
    for (const NamedScheme& scheme : schemes) {
      for (const auto& [of_curve, suffix] : curves) {
        KVTIER_ASSIGN_OR_RETURN(const ReplayResult result,
                                Replay(trace, scheme, of_curve, capacities[i]));
        const auto add = [&, &suffix = suffix](absl::string_view column, double value,
                                               double limit) {
          rows.push_back({scheme.name, capacities[i], absl::StrCat(column, suffix), value, limit});
        };
        add("hits", result.hits, everything.hits);
        add("weighted", result.weighted, everything.hits);
        add("bytes_moved", 1e-9 * static_cast<double>(result.bytes_moved), 0);
      }
    }
    for (const auto& [of_curve, suffix] : curves) {
      SetTargets(absl::StrCat("weighted", suffix), everything.hits, rows, first);
    }
    progress(static_cast<double>(i + 1) / static_cast<double>(capacities.size()));
  }
  return rows;
}

std::string RetentionTable(const std::vector<RetentionRow>& rows) {
  return absl::StrCat("weighted by the curve, ok: reaches its target", Table(rows, "weighted"),
                      "\nweighted by the steep curve", Table(rows, "weighted_steep"), "\nhits",
                      Table(rows, "hits"));
}

}  // namespace kvtier::bench
