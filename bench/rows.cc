#include "bench/rows.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvtier::bench {
namespace {

absl::string_view Symbol(Target::Sense sense) {
  return sense == Target::Sense::kAtLeast ? ">=" : "<=";
}

std::string TargetText(const Row& row) {
  const Target& target = *row.target;
  return target.of == Target::Of::kLimit
             ? absl::StrFormat("%s %.2f of %s", Symbol(target.sense), target.bound, row.limit_name)
             : absl::StrFormat("%s %g %s", Symbol(target.sense), target.bound, row.unit);
}

nlohmann::ordered_json ToJson(const Row& row) {
  nlohmann::ordered_json json = {{"suite", row.suite}, {"name", row.name}};
  if (row.measured()) {
    json["value"] = row.value;
  } else {
    json["not_measured"] = row.not_measured;
  }
  json["unit"] = row.unit;
  if (row.limit > 0) {
    json["limit"] = row.limit;
    json["limit_name"] = row.limit_name;
    json["of_limit"] = *row.of_limit();
  }
  if (row.target.has_value()) {
    json["target"] = row.target->bound;
    json["target_is"] = absl::StrCat(Symbol(row.target->sense),
                                     row.target->of == Target::Of::kLimit ? " of_limit" : " value");
    json["pass"] = *row.pass();
    json["required"] = row.target->is_required;
  }
  return json;
}

}  // namespace

std::optional<double> Row::of_limit() const {
  if (!measured() || limit <= 0) return std::nullopt;
  return value / limit;
}

std::optional<bool> Row::pass() const {
  if (!target.has_value()) return std::nullopt;
  if (!measured()) return false;
  double reached = value;
  if (target->of == Target::Of::kLimit) {
    if (!of_limit().has_value()) return false;  // Its limit was not measured.
    reached = *of_limit();
  }
  return target->sense == Target::Sense::kAtLeast ? reached >= target->bound
                                                  : reached <= target->bound;
}

Row NotMeasured(std::string name, std::string unit, std::optional<Target> target, std::string why) {
  Row row{.name = std::move(name), .unit = std::move(unit)};
  row.target = target;
  row.not_measured = std::move(why);
  return row;
}

std::string FormatTable(const std::vector<Row>& rows) {
  size_t width = 0;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  std::string text;
  for (const Row& row : rows) {
    absl::StrAppendFormat(&text, "  %-*s", static_cast<int>(width), row.name);
    if (!row.measured()) {
      absl::StrAppend(&text, "  not measured: ", row.not_measured, "\n");
      continue;
    }
    absl::StrAppendFormat(&text, " %12.2f %-9s", row.value, row.unit);
    if (const std::optional<double> share = row.of_limit()) {
      absl::StrAppendFormat(&text, " %6.2f of %s", *share, row.limit_name);
    }
    if (row.target.has_value()) {
      absl::StrAppend(&text, "  [", TargetText(row), *row.pass() ? "]" : ": MISSED]");
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

std::string FormatJson(const Machine& machine, int runs, bool is_quick,
                       const std::vector<NamedResult>& results) {
  nlohmann::ordered_json facts = nlohmann::ordered_json::object();
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const NamedResult& named : results) {
    for (const auto& [name, value] : named.result.facts) facts[named.suite][name] = value;
    for (const Row& row : named.result.rows) rows.push_back(ToJson(row));
  }
  const nlohmann::ordered_json json = {
      {"machine", {{"processor", machine.processor}, {"cores", machine.cores}}},
      {"runs", runs},
      {"quick", is_quick},
      {"facts", std::move(facts)},
      {"rows", std::move(rows)}};
  return json.dump(1) + "\n";
}

std::vector<std::string> Misses(const std::vector<Row>& rows) {
  std::vector<std::string> misses;
  for (const Row& row : rows) {
    if (!row.target.has_value() || !row.target->is_required || *row.pass()) continue;
    misses.push_back(absl::StrCat(
        row.suite, ": ", row.name, ": ",
        row.measured() ? absl::StrFormat("%g %s", row.value, row.unit)
                       : absl::StrCat("not measured: ", row.not_measured),
        row.measured() && row.of_limit().has_value() && row.target->of == Target::Of::kLimit
            ? absl::StrFormat(" (%.3f of %s)", *row.of_limit(), row.limit_name)
            : "",
        ", must be ", TargetText(row)));
  }
  return misses;
}

}  // namespace kvtier::bench
