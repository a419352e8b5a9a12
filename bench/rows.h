// Rows of kvtier-bench as a table and as JSON, and the verdict of --check.
#ifndef KVTIER_BENCH_ROWS_H_
#define KVTIER_BENCH_ROWS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "bench/suite.h"

namespace kvtier::bench {

// A line for each row: name, value and unit, share of the limit, target and whether it is reached.
std::string FormatTable(const std::vector<Row>& rows);

// What the figures were measured with.
struct Machine {
  std::string processor;
  unsigned cores = 0;
};

struct NamedResult {
  std::string suite;
  SuiteResult result;
};
// {"machine", "runs", "quick", "facts": {suite: {...}}, "rows": [{"suite", "name", "value", "unit",
// "limit", "limit_name", "of_limit", "target", "target_is", "pass", "required"}]}. A row has only
// the fields that apply to it. `target` is a share of the limit or a value, as `target_is` says:
// ">= of_limit", ">= value", "<= value". A row that was not measured has `not_measured` instead of
// `value`, and `pass` false if it has a target.
std::string FormatJson(const Machine& machine, int runs, bool is_quick,
                       const std::vector<NamedResult>& results);

// One line for each row whose target is required and not reached, not measured ones included.
std::vector<std::string> Misses(const std::vector<Row>& rows);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_ROWS_H_
