#include "tests/gpu/bench_run.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using nlohmann::json;

bool IsRow(const json& row) {
  return row.is_object() && row.contains("device") && row["device"].is_string() &&
         row.contains("name") && row["name"].is_string() &&
         (!row.contains("build") || row["build"].is_string()) &&
         (row.contains("figures") || row.contains("error"));
}

// The rows of a file.
struct Contents {
  std::vector<json> rows;
  uint64_t bytes = 0;        // Of the file,
  uint64_t whole_bytes = 0;  // and without a last line that was cut off.
};

absl::StatusOr<Contents> ReadRows(const std::string& file) {
  std::ifstream from(file, std::ios::binary);
  if (!from.is_open()) return absl::NotFoundError(absl::StrCat("no file ", file));
  const std::string text{std::istreambuf_iterator<char>(from), {}};
  Contents contents;
  contents.bytes = text.size();
  size_t end = 0;
  for (size_t begin = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    json row = json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                           text.begin() + static_cast<std::ptrdiff_t>(end), nullptr,
                           /*allow_exceptions=*/false);
    if (!IsRow(row)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, " line ", contents.rows.size() + 1, " is no row of a benchmark"));
    }
    contents.rows.push_back(std::move(row));
    contents.whole_bytes = end + 1;
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

std::set<std::string> MeasuredOf(const Contents& contents, const std::string& build,
                                 const std::string& device) {
  std::set<std::string> names;
  for (const json& row : contents.rows) {
    if (row.value("build", "") == build && row["device"] == device && row.contains("figures")) {
      names.insert(row["name"].get<std::string>());
    }
  }
  return names;
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
  // What is appended would continue the line that was cut off. Cut, not written anew: the rows
  // before it are the only copy.
  if (contents.whole_bytes < contents.bytes) {
    std::error_code error;
    std::filesystem::resize_file(options.file, contents.whole_bytes, error);
    if (error) {
      return absl::UnknownError(absl::StrCat("cannot cut ", options.file, ": ", error.message()));
    }
  }
  return MeasuredOf(contents, options.build, options.device);
}

absl::StatusOr<Figures> Measure(const BenchRow& row) {
  KVTIER_ASSIGN_OR_RETURN(Figures figures, row.measure());
  for (const auto& [name, value] : figures) {
    // JSON has no such numbers.
    if (!std::isfinite(value)) return absl::InternalError(absl::StrCat(name, " is ", value));
  }
  return figures;
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

absl::StatusOr<std::string> BuildOf(const std::string& program) {
  std::ifstream from(program, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(from), {}};
  if (!from.is_open() || from.bad() || bytes.empty()) {
    return absl::UnknownError(absl::StrCat("cannot read ", program));
  }
  std::ostringstream build;
  build << "crc32c " << ComputeCrc32c(std::as_bytes(std::span(bytes)));
  return build.str();
}

absl::StatusOr<std::set<std::string>> ReadMeasured(const std::string& file,
                                                   const std::string& build,
                                                   const std::string& device) {
  KVTIER_ASSIGN_OR_RETURN(const Contents contents, ReadRows(file));
  return MeasuredOf(contents, build, device);
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
    const absl::StatusOr<Figures> figures = Measure(row);
    Print(row.name, figures);
    json line = {{"build", options.build}, {"device", options.device}, {"name", row.name}};
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
