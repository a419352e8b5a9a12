#include "bench/quality/quality_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kTargetMillionths = 300'000;
constexpr uint32_t kMildMillionths = 900'000;
constexpr double kPoints = 0.02;
constexpr int kDepthParts = 5;

Ratio RatioOf(uint32_t millionths) { return *Ratio::FromMillionths(millionths); }

const Cell& FullOf(const TaskResult& result) { return result.cells.front(); }

// Over all cells: what is known of how alike the samples of one of the task's documents are.
double CorrelationOf(const TaskResult& result) {
  std::vector<std::span<const uint8_t>> cells;
  for (const Cell& cell : result.cells) cells.emplace_back(cell.right);
  return IntraclassCorrelation(cells, result.document);
}

// `rho` here and below: CorrelationOf(result).
Interval MinusFull(const TaskResult& result, const Cell& cell, double rho) {
  if (cell.origin == Origin::kFull) return {};  // The same answers, not a second measurement.
  return PairedDifference(cell.right, FullOf(result).right, result.document, rho);
}

std::string Label(const Cell& cell) {
  if (cell.method == "full") return "full";
  return absl::StrCat(cell.method, " at ", cell.ratio.ToString(),
                      cell.codec == "raw" ? "" : absl::StrCat(" ", cell.codec));
}

// Intervals are compared and shown to a ten thousandth, so that files do not differ by rounding.
double Rounded(double value) { return std::round(value * 1e4) / 1e4; }

std::string Points(const Interval& interval) {
  return absl::StrFormat("%+.2f points [%+.2f, %+.2f]", 100 * interval.value, 100 * interval.low,
                         100 * interval.high);
}

void AppendSetting(const TaskResult& result, Setting setting, std::string& table) {
  std::vector<Ratio> ratios;
  std::vector<std::string> names;  // Method, and codec where it is not raw.
  const auto name_of = [](const Cell& cell) {
    return cell.codec == "raw" ? cell.method : absl::StrCat(cell.method, " ", cell.codec);
  };
  for (const Cell& cell : result.cells) {
    if (cell.setting != setting) continue;
    if (std::find(ratios.begin(), ratios.end(), cell.ratio) == ratios.end()) {
      ratios.push_back(cell.ratio);
    }
    if (std::find(names.begin(), names.end(), name_of(cell)) == names.end()) {
      names.push_back(name_of(cell));
    }
  }
  std::sort(ratios.begin(), ratios.end());
  absl::StrAppendFormat(
      &table, "\n%s, %s: %d documents, %d samples; right answers in percent\n", result.task->title,
      setting == Setting::kShared ? "one cache for all questions" : "a cache for each question",
      result.documents, result.document.size());
  absl::StrAppendFormat(&table, "%-14s", "kept");
  for (Ratio ratio : ratios) absl::StrAppendFormat(&table, "%7s", ratio.ToString());
  table += "\n";
  for (const std::string& name : names) {
    absl::StrAppendFormat(&table, "%-14s", name);
    for (Ratio ratio : ratios) {
      const auto cell = std::find_if(result.cells.begin(), result.cells.end(), [&](const Cell& c) {
        return c.setting == setting && c.ratio == ratio && name_of(c) == name;
      });
      if (cell == result.cells.end()) {
        absl::StrAppendFormat(&table, "%7s", "");
      } else {
        const double right = std::accumulate(cell->right.begin(), cell->right.end(), 0.0);
        absl::StrAppendFormat(&table, "%7.1f",
                              100 * right / static_cast<double>(cell->right.size()));
      }
    }
    table += "\n";
  }
}

Json RowOf(const TaskResult& result, const Cell& cell, double rho) {
  const Interval score = ShareRight(cell.right, result.document, rho);
  const Interval difference = MinusFull(result, cell, rho);
  return {{"task", result.task->name},
          {"method", cell.method},
          {"ratio", cell.ratio.ToDouble()},
          {"setting", std::string(SettingName(cell.setting))},
          {"codec", cell.codec},
          {"origin", std::string(OriginName(cell.origin))},
          {"score", Rounded(score.value)},
          {"low", Rounded(score.low)},
          {"high", Rounded(score.high)},
          {"samples", cell.right.size()},
          {"minus_full", Rounded(difference.value)},
          {"minus_full_low", Rounded(difference.low)},
          {"minus_full_high", Rounded(difference.high)}};
}

// Scores of the needle task by where the needle stands, full and at 0.3.
Json DepthRows(const TaskResult& result, double rho) {
  Json rows = Json::array();
  for (const Cell& cell : result.cells) {
    const bool shown =
        cell.codec == "raw" && (cell.method == "full" || cell.ratio == RatioOf(kTargetMillionths));
    if (!shown) continue;
    for (int part = 0; part < kDepthParts; ++part) {
      std::vector<uint8_t> right;
      std::vector<uint32_t> document;
      for (size_t i = 0; i < cell.right.size(); ++i) {
        if (std::min(static_cast<int>(result.depth[i] * kDepthParts), kDepthParts - 1) != part) {
          continue;
        }
        right.push_back(cell.right[i]);
        document.push_back(result.document[i]);
      }
      if (right.empty()) continue;
      const Interval score = ShareRight(right, document, rho);
      rows.push_back({{"method", cell.method},
                      {"ratio", cell.ratio.ToDouble()},
                      {"setting", std::string(SettingName(cell.setting))},
                      {"depth_from", static_cast<double>(part) / kDepthParts},
                      {"depth_to", static_cast<double>(part + 1) / kDepthParts},
                      {"score", Rounded(score.value)},
                      {"low", Rounded(score.low)},
                      {"high", Rounded(score.high)},
                      {"samples", right.size()}});
    }
  }
  return rows;
}

void AddComparison(const TaskResult& result, const Cell* a, const Cell* b, double rho,
                   std::vector<Comparison>& out) {
  if (a == nullptr || b == nullptr) return;
  out.push_back({result.task->name, Label(*a), Label(*b),
                 PairedDifference(a->right, b->right, result.document, rho)});
}

}  // namespace

const Cell* FindCell(const TaskResult& result, absl::string_view method, Ratio ratio,
                     Setting setting, absl::string_view codec, std::optional<Origin> origin) {
  for (const Cell& cell : result.cells) {
    if (cell.method == method && cell.ratio == ratio && cell.setting == setting &&
        cell.codec == codec && (!origin.has_value() || cell.origin == *origin)) {
      return &cell;
    }
  }
  return nullptr;
}

std::vector<Comparison> Compare(std::span<const TaskResult> results) {
  const Ratio target = RatioOf(kTargetMillionths);
  std::vector<Comparison> out;
  for (const TaskResult& result : results) {
    const double rho = CorrelationOf(result);
    const Cell* kvzip = FindCell(result, "kvzip", target, Setting::kShared);
    AddComparison(result, kvzip, &FullOf(result), rho, out);
    for (const char* codec : {"int8", "int4"}) {
      AddComparison(result, FindCell(result, "kvzip", target, Setting::kShared, codec), kvzip, rho,
                    out);
    }
    for (const Cell& cell : result.cells) {
      if (cell.method != "kvzip+" || cell.setting != Setting::kShared || cell.ratio == Ratio()) {
        continue;
      }
      AddComparison(result, &cell, FindCell(result, "kvzip", cell.ratio, Setting::kShared), rho,
                    out);
    }
    for (const char* method : {"snapkv", "pyramidkv", "h2o"}) {
      AddComparison(result, FindCell(result, method, RatioOf(kMildMillionths), Setting::kShared),
                    &FullOf(result), rho, out);
    }
  }
  return out;
}

std::optional<Ratio> LosslessFrom(const TaskResult& result, absl::string_view method,
                                  double points) {
  const double rho = CorrelationOf(result);
  std::map<Ratio, bool> holds;
  for (const Cell& cell : result.cells) {
    if (cell.method != method || cell.setting != Setting::kShared || cell.codec != "raw") continue;
    const Interval difference = MinusFull(result, cell, rho);
    const bool inside = difference.low >= -points && difference.high <= points;
    // A ratio may be there twice, selected and from bands: both must hold.
    holds[cell.ratio] = inside && holds.emplace(cell.ratio, true).first->second;
  }
  std::optional<Ratio> from;
  for (auto it = holds.rbegin(); it != holds.rend() && it->second; ++it) from = it->first;
  return from;
}

std::string QualityTable(std::span<const TaskResult> results) {
  std::string table;
  for (Setting setting : {Setting::kShared, Setting::kPerQuery}) {
    for (const TaskResult& result : results) AppendSetting(result, setting, table);
  }
  absl::StrAppend(&table, "\nDifferences, paired, with 95 % intervals\n");
  for (const Comparison& comparison : Compare(results)) {
    absl::StrAppendFormat(&table, "%-14s %-20s minus %-14s %s\n", comparison.task, comparison.a,
                          comparison.b, Points(comparison.difference));
  }
  absl::StrAppendFormat(&table, "\nkvzip minus full stays within %.0f points down to\n",
                        100 * kPoints);
  for (const TaskResult& result : results) {
    const std::optional<Ratio> from = LosslessFrom(result, "kvzip", kPoints);
    absl::StrAppendFormat(&table, "%-14s %s\n", result.task->name,
                          from.has_value() ? from->ToString() : "no ratio measured");
  }
  return table;
}

std::string QualityCsv(std::span<const TaskResult> results) {
  std::string csv;
  for (const TaskResult& result : results) {
    const double rho = CorrelationOf(result);
    for (const Cell& cell : result.cells) {
      const Json row = RowOf(result, cell, rho);
      if (csv.empty()) {
        for (const auto& [key, value] : row.items()) {
          absl::StrAppend(&csv, csv.empty() ? "" : ",", key);
        }
      }
      const char* separator = "\n";
      for (const auto& [key, value] : row.items()) {
        absl::StrAppend(&csv, separator,
                        value.is_string() ? value.get<std::string>() : value.dump());
        separator = ",";
      }
    }
  }
  return csv;
}

std::string QualityJson(const QualityRun& run) {
  const std::vector<TaskResult>& results = run.tasks;
  const QualitySource& source = run.source;
  Json json;
  json["version"] = 1;
  json["model"] = source.model;
  json["model_digest"] = source.model_digest;
  json["seed"] = source.seed;
  json["document_bytes"] = source.document_bytes;
  json["text"] = {{"files", source.text_files}, {"sha256", source.text_digest}};
  json["tasks"] = Json::array();
  json["rows"] = Json::array();
  json["comparisons"] = Json::array();
  json["lossless_from"] = Json::array();
  json["needle_depth"] = Json::array();
  for (const TaskResult& result : results) {
    const double rho = CorrelationOf(result);
    json["tasks"].push_back({{"name", result.task->name},
                             {"title", result.task->title},
                             {"redundant", result.task->redundant},
                             {"documents", result.documents},
                             {"samples", result.document.size()},
                             {"correlation", Rounded(rho)}});
    for (const Cell& cell : result.cells) json["rows"].push_back(RowOf(result, cell, rho));
    for (const char* method : {"kvzip", "kvzip+", "uniform", "head"}) {
      const std::optional<Ratio> from = LosslessFrom(result, method, kPoints);
      json["lossless_from"].push_back(
          {{"task", result.task->name},
           {"method", method},
           {"points", 100 * kPoints},
           {"ratio", from.has_value() ? Json(from->ToDouble()) : Json()}});
    }
    if (absl::string_view(result.task->name) == "needle") {
      json["needle_depth"] = DepthRows(result, rho);
    }
  }
  json["methods"] = Json::array({{{"name", "full"}, {"title", "Full cache"}}});
  for (const Method& method : AllMethods()) {
    json["methods"].push_back({{"name", method.name}, {"title", method.title}});
  }
  for (const Comparison& comparison : Compare(results)) {
    json["comparisons"].push_back({{"task", comparison.task},
                                   {"a", comparison.a},
                                   {"b", comparison.b},
                                   {"difference", Rounded(comparison.difference.value)},
                                   {"low", Rounded(comparison.difference.low)},
                                   {"high", Rounded(comparison.difference.high)}});
  }
  // A line per row: files of several runs can be compared line by line.
  std::string text = "{\n";
  bool first = true;
  for (const auto& [key, value] : json.items()) {
    absl::StrAppend(&text, first ? "" : ",\n", "\"", key, "\": ");
    first = false;
    if (!value.is_array()) {
      text += value.dump();
      continue;
    }
    text += "[";
    for (size_t i = 0; i < value.size(); ++i) {
      absl::StrAppend(&text, i == 0 ? "\n  " : ",\n  ", value[i].dump());
    }
    text += "\n]";
  }
  return text + "\n}";
}

}  // namespace kvtier
