#include "services/ctl/object_report.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/ctl/output.h"

namespace kvtier::ctl {
namespace {

constexpr size_t kBins = 10;
constexpr size_t kBarCells = 40;

std::string Percent(double share) { return absl::StrFormat("%.1f %%", 100 * share); }

// Ranked rows of one head in one band.
uint64_t RankedRows(const Manifest& m, uint32_t band, uint32_t layer, uint32_t head) {
  const uint64_t rows = m.segment(BandIndex(band), LayerIndex(layer)).heads[head].rows;
  return band == 0 ? rows - m.protected_tokens() : rows;
}

}  // namespace

ObjectReport MakeReport(const Manifest& m) {
  ObjectReport report;
  report.kv_heads = m.geometry.kv_heads;
  for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
    if (m.geometry.layers[l] == LayerKind::kGlobal) report.layers.push_back(l);
  }
  double all_mass = 0;
  for (const BandEntry& band : m.bands) all_mass += band.score_mass;
  const double tokens = static_cast<double>(std::max<uint64_t>(1, m.ranked_tokens()));

  BandReport sum;
  std::vector<uint64_t> rows(report.layers.size() * report.kv_heads);
  for (uint32_t b = 0; b < m.bands.size(); ++b) {
    const BandEntry& band = m.bands[b];
    sum.edge = band.edge;
    sum.bytes += band.encoded_bytes();
    sum.threshold = band.threshold;
    sum.mass_share = all_mass > 0 ? band.score_mass / all_mass : 0;
    sum.mass_below += sum.mass_share;
    sum.accuracy.reset();
    if (m.fidelity.has_value() && m.fidelity->correct[b].has_value()) {
      sum.accuracy =
          static_cast<double>(*m.fidelity->correct[b]) / static_cast<double>(m.fidelity->tokens);
    }
    std::vector<double>& kept = report.kept.emplace_back();
    for (size_t row = 0; row < rows.size(); ++row) {
      const uint64_t more = RankedRows(m, b, report.layers[row / report.kv_heads],
                                       static_cast<uint32_t>(row % report.kv_heads));
      rows[row] += more;
      sum.rows += more;
      kept.push_back(static_cast<double>(rows[row]) / tokens);
    }
    report.bands.push_back(sum);
  }
  return report;
}

std::string FormatReport(const ObjectReport& report, const v1::ObjectSummary& summary) {
  const bool measured = std::any_of(report.bands.begin(), report.bands.end(),
                                    [](const BandReport& b) { return b.accuracy.has_value(); });
  std::vector<std::vector<std::string>> rows = {
      {"ratio", "bytes up to here", "of dense", "rows", "threshold", "score mass", "up to here"}};
  if (measured) rows[0].push_back("repeats");
  rows[0].push_back("where");
  const double dense = static_cast<double>(std::max<uint64_t>(1, summary.dense_bytes()));
  for (uint32_t b = 0; b < report.bands.size(); ++b) {
    const BandReport& band = report.bands[b];
    std::vector<std::string>& row = rows.emplace_back();
    row = {band.edge.ToString(),
           absl::StrCat(band.bytes),
           Percent(static_cast<double>(band.bytes) / dense),
           absl::StrCat(band.rows),
           std::isinf(band.threshold) ? "-" : absl::StrFormat("%.3f", band.threshold),
           Percent(band.mass_share),
           Percent(band.mass_below)};
    if (measured) row.push_back(band.accuracy.has_value() ? Percent(*band.accuracy) : "-");
    row.push_back(FormatPlace(summary, b));
  }
  return FormatTable(rows);
}

std::string FormatHeads(const ObjectReport& report, uint32_t band) {
  std::array<size_t, kBins> counts{};
  for (const double kept : report.kept[band]) {
    ++counts[std::min(kBins - 1, static_cast<size_t>(kept * kBins))];
  }
  const size_t most = std::max<size_t>(1, *std::max_element(counts.begin(), counts.end()));
  std::string text = absl::StrFormat("heads by what they keep at ratio %s, of %d\n",
                                     report.bands[band].edge.ToString(), report.kept[band].size());
  for (size_t bin = 0; bin < kBins; ++bin) {
    const size_t cells = (counts[bin] * kBarCells + most - 1) / most;
    std::string line = absl::StrFormat("%3d-%3d %%  %5d  %s", bin * 10, (bin + 1) * 10, counts[bin],
                                       std::string(cells, '#'));
    while (line.back() == ' ') line.pop_back();
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

void AddReport(const ObjectReport& report, const Manifest& manifest, nlohmann::json& json) {
  for (size_t b = 0; b < report.bands.size(); ++b) {
    const BandReport& band = report.bands[b];
    nlohmann::json& out = json["bands"][b];
    out["bytes_up_to_here"] = band.bytes;
    out["rows_up_to_here"] = band.rows;
    out["score_mass_share"] = band.mass_share;
    out["score_mass_up_to_here"] = band.mass_below;
    if (std::isinf(band.threshold)) out["threshold"] = nullptr;
    if (band.accuracy.has_value()) out["accuracy"] = *band.accuracy;
    nlohmann::json kept = nlohmann::json::array();  // [layers][heads]
    for (size_t layer = 0; layer < report.layers.size(); ++layer) {
      const auto begin = report.kept[b].begin() + static_cast<int64_t>(layer * report.kv_heads);
      kept.push_back(std::vector<double>(begin, begin + report.kv_heads));
    }
    out["kept"] = std::move(kept);
  }
  json["scored_layers"] = report.layers;
  if (manifest.fidelity.has_value()) {
    json["fidelity"] = {{"chunks", manifest.fidelity->chunks},
                        {"tokens", manifest.fidelity->tokens}};
  }
}

}  // namespace kvtier::ctl
