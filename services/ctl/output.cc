#include "services/ctl/output.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "kvcache/bands.h"

namespace kvtier::ctl {
namespace {

constexpr int kBarCells = 30;

bool LooksNumeric(absl::string_view cell) {
  return !cell.empty() && (absl::ascii_isdigit(static_cast<unsigned char>(cell[0])) || cell == "-");
}

}  // namespace

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < rows[r].size(); ++i) {
      // A heading stands as its column does: look at the first row below it.
      const bool right = LooksNumeric(rows[std::min(r == 0 ? size_t{1} : r, rows.size() - 1)][i]);
      const std::string padding(widths[i] - rows[r][i].size(), ' ');
      absl::StrAppend(&line, i == 0 ? "" : "  ", right ? padding : "", rows[r][i],
                      right ? "" : padding);
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string FormatBytes(uint64_t bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(units)) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.3g %s", value, units[unit]);
}

std::string FormatRatio(uint32_t millionths) {
  const absl::StatusOr<Ratio> ratio = Ratio::FromMillionths(millionths);
  return ratio.ok() ? ratio->ToString() : absl::StrCat(millionths, "e-6");
}

std::string ToHex(absl::string_view bytes) { return absl::BytesToHexString(bytes); }

nlohmann::json ToJson(const v1::ObjectSummary& object) {
  nlohmann::json bands = nlohmann::json::array();
  for (const v1::BandSummary& band : object.bands()) {
    bands.push_back({{"ratio", band.edge_millionths() / 1e6},
                     {"bytes", band.bytes()},
                     {"threshold", band.threshold()},
                     {"score_mass", band.score_mass()}});
  }
  return {{"key", ToHex(object.name().key())},
          {"upload_id", ToHex(object.name().upload_id())},
          {"model", object.model()},
          {"recipe", object.recipe()},
          {"system_tokens", object.system_tokens()},
          {"context_tokens", object.context_tokens()},
          {"dense_bytes", object.dense_bytes()},
          {"bands", std::move(bands)},
          {"resident_bands", object.resident_bands()},
          {"host_bands", object.host_bands()},
          {"disk_bands", object.disk_bands()},
          {"durability", object.durability() == v1::DURABILITY_DISK ? "disk" : "host"},
          {"sealed_unix_ms", object.sealed_unix_ms()},
          {"pinned", object.pinned()},
          {"expires_unix_ms", object.expires_unix_ms()}};
}

std::string Dump(const nlohmann::json& json) {
  return json.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false,
                   nlohmann::json::error_handler_t::replace);
}

std::string FormatAttributes(const v1::ObjectSummary& object) {
  return absl::StrCat(
      object.pinned() ? "pinned" : "not pinned", ", ",
      object.expires_unix_ms() == 0
          ? std::string("never expires")
          : absl::StrCat("expires ",
                         absl::FormatTime(absl::FromUnixMillis(object.expires_unix_ms()))));
}

std::string FormatPlace(const v1::ObjectSummary& object, uint32_t band) {
  if (band >= object.resident_bands()) return "gone";
  std::string where = band < object.host_bands() ? "host" : "";
  if (band < object.disk_bands()) absl::StrAppend(&where, where.empty() ? "" : "+", "disk");
  return where;
}

std::string FormatBands(const v1::ObjectSummary& object) {
  std::vector<std::vector<std::string>> rows = {
      {"ratio", "bytes up to here", "of dense", "threshold", "where"}};
  uint64_t bytes = 0;
  for (int b = 0; b < object.bands_size(); ++b) {
    const v1::BandSummary& band = object.bands(b);
    bytes += band.bytes();
    const double dense = static_cast<double>(std::max<uint64_t>(1, object.dense_bytes()));
    rows.push_back({FormatRatio(band.edge_millionths()), absl::StrCat(bytes),
                    absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(bytes) / dense),
                    absl::StrFormat("%.3f", band.threshold()),
                    FormatPlace(object, static_cast<uint32_t>(b))});
  }
  return FormatTable(rows);
}

ProgressBar::ProgressBar() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (open_line_) std::fputc('\n', stderr);
}

void ProgressBar::Update(absl::string_view stage, uint64_t done, uint64_t total) {
  const bool new_stage = stage != stage_;
  if (new_stage && open_line_) {
    std::fputc('\n', stderr);
    open_line_ = false;
  }
  stage_ = std::string(stage);
  const uint64_t tenth = total == 0 ? 0 : 10 * std::min(done, total) / total;
  if (terminal_) {
    const int full = total == 0 ? 0 : static_cast<int>(kBarCells * std::min(done, total) / total);
    std::fprintf(stderr, "\r%-9s [%s%s] %llu/%llu ", stage_.c_str(),
                 std::string(static_cast<size_t>(full), '#').c_str(),
                 std::string(static_cast<size_t>(kBarCells - full), '.').c_str(),
                 static_cast<unsigned long long>(done), static_cast<unsigned long long>(total));
    std::fflush(stderr);
    open_line_ = true;
  } else if (new_stage || tenth > shown_tenth_) {
    std::fprintf(stderr, "%s %llu/%llu\n", stage_.c_str(), static_cast<unsigned long long>(done),
                 static_cast<unsigned long long>(total));
  }
  shown_tenth_ = tenth;
}

}  // namespace kvtier::ctl
