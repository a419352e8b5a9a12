// What several subcommands print: tables, sizes, progress, objects as JSON.
#ifndef KVTIER_SERVICES_CTL_OUTPUT_H_
#define KVTIER_SERVICES_CTL_OUTPUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "kvtier/v1/types.pb.h"

namespace kvtier::ctl {

// Rows of equally many cells; the first row is the heading. Cells that look like numbers are
// aligned to the right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

// "3.4 MB": powers of ten.
std::string FormatBytes(uint64_t bytes);
std::string FormatRatio(uint32_t millionths);  // "0.3"
std::string ToHex(absl::string_view bytes);

nlohmann::json ToJson(const v1::ObjectSummary& object);
// One line. Text that is no UTF-8 (answers of byte models may be anything) has U+FFFD in its place.
std::string Dump(const nlohmann::json& json);
// "pinned, expires 2026-01-02T03:04:05+00:00"; "not pinned, never expires".
std::string FormatAttributes(const v1::ObjectSummary& object);
// Where a band is: "host", "disk", "host+disk", "gone".
std::string FormatPlace(const v1::ObjectSummary& object, uint32_t band);
// The bands of an object: ratio, bytes up to there, resident where.
std::string FormatBands(const v1::ObjectSummary& object);

// A bar on a terminal, redrawn in place; when piped, one plain line per stage and tenth.
// Not thread-safe.
class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar();  // Ends the line.
  void Update(absl::string_view stage, uint64_t done, uint64_t total);

 private:
  const bool terminal_;
  std::string stage_;
  uint64_t shown_tenth_ = 0;
  bool open_line_ = false;
};

}  // namespace kvtier::ctl

#endif  // KVTIER_SERVICES_CTL_OUTPUT_H_
