#include "tests/gpu/bench_run.h"

#include <cstdio>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using nlohmann::json;

std::vector<std::string> ReadLines(std::istream& from, bool& last_is_whole) {
  std::vector<std::string> lines;
  std::string line;
  while (std::getline(from, line)) {
    last_is_whole = !from.eof();
    lines.push_back(line);
  }
  return lines;
}

bool IsRow(const json& row) {
  return row.is_object() && row.contains("device") && row["device"].is_string() &&
         row.contains("name") && row["name"].is_string() &&
         (row.contains("figures") || row.contains("error"));
}

// The rows of a file, and whether its last line was cut off.
struct Contents {
  std::vector<json> rows;
  bool torn = false;
};

absl::StatusOr<Contents> ReadRows(const std::string& file) {
  std::ifstream from(file);
  if (!from.is_open()) return absl::NotFoundError(absl::StrCat("no file ", file));
  bool last_is_whole = true;
  const std::vector<std::string> lines = ReadLines(from, last_is_whole);
  Contents contents;
  contents.torn = !last_is_whole;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (contents.torn && i + 1 == lines.size()) break;
    json row = json::parse(lines[i], nullptr, /*allow_exceptions=*/false);
    if (!IsRow(row)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, " line ", i + 1, " is no row of a benchmark"));
    }
    contents.rows.push_back(std::move(row));
  }
  return contents;
}

absl::Status CheckNames(const std::vector<BenchRow>& rows) {
  std::set<std::string> names;
  for (const BenchRow& row : rows) {
    if (!names.insert(row.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("two rows are called ", row.name));
    }
  }
  return absl::OkStatus();
}

absl::Status Append(const BenchOptions& options, const std::string& text) {
  if (options.file.empty()) return absl::OkStatus();
  std::ofstream to(options.file, std::ios::app);
  to << text << std::flush;
  to.close();
  if (!to.fail()) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat("cannot write ", options.file));
}

// What earlier runs measured; makes the file ready to be appended to.
absl::StatusOr<std::set<std::string>> Prepare(const BenchOptions& options) {
  if (options.file.empty()) {
    if (!options.resume) return std::set<std::string>();
    return absl::InvalidArgumentError("a run without a file cannot be resumed");
  }
  if (!std::ifstream(options.file).is_open()) return std::set<std::string>();
  if (!options.resume) {
    return absl::AlreadyExistsError(
        absl::StrCat(options.file, " is there: resume it, or name another file"));
  }
  KVTIER_ASSIGN_OR_RETURN(const Contents contents, ReadRows(options.file));
  // A new line ends the one that was cut off; it is then no row, so it goes.
  if (contents.torn) {
    std::ofstream to(options.file, std::ios::trunc);
    for (const json& row : contents.rows) to << row.dump() << "\n";
    to.close();
    if (to.fail()) return absl::UnknownError(absl::StrCat("cannot write ", options.file));
  }
  return ReadMeasured(options.file, options.device);
}

void Print(const std::string& name, const absl::StatusOr<Figures>& figures) {
  std::printf("%-56s", name.c_str());
  if (!figures.ok()) {
    std::printf(" failed: %s\n", figures.status().ToString().c_str());
  } else {
    for (const auto& [figure, value] : *figures) std::printf(" %s=%.6g", figure.c_str(), value);
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace

absl::StatusOr<std::set<std::string>> ReadMeasured(const std::string& file,
                                                   const std::string& device) {
  KVTIER_ASSIGN_OR_RETURN(const Contents contents, ReadRows(file));
  std::set<std::string> names;
  for (const json& row : contents.rows) {
    if (row["device"] == device && row.contains("figures")) {
      names.insert(row["name"].get<std::string>());
    }
  }
  return names;
}

absl::StatusOr<BenchReport> RunBench(const std::vector<BenchRow>& rows,
                                     const BenchOptions& options) {
  KVTIER_RETURN_IF_ERROR(CheckNames(rows));
  KVTIER_ASSIGN_OR_RETURN(const std::set<std::string> measured, Prepare(options));
  BenchReport report;
  for (const BenchRow& row : rows) {
    if (measured.count(row.name) > 0) {
      ++report.skipped;
      continue;
    }
    const absl::StatusOr<Figures> figures = row.measure();
    Print(row.name, figures);
    json line = {{"device", options.device}, {"name", row.name}};
    if (figures.ok()) {
      line["figures"] = *figures;
    } else {
      line["error"] = figures.status().ToString();
    }
    ++(figures.ok() ? report.measured : report.failed);
    KVTIER_RETURN_IF_ERROR(Append(options, line.dump() + "\n"));
  }
  return report;
}

}  // namespace kvtier
