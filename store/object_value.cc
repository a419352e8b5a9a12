#include "store/object_value.h"

#include <algorithm>
#include <cmath>

namespace kvtier {
namespace {

// Empty unless there is a figure at every edge.
std::vector<double> FromFidelity(const Manifest& manifest) {
  if (!manifest.fidelity.has_value() || manifest.fidelity->tokens == 0 ||
      manifest.fidelity->correct.size() != manifest.bands.size()) {
    return {};
  }
  std::vector<double> qualities;
  double best = 0;
  for (const std::optional<uint64_t>& correct : manifest.fidelity->correct) {
    if (!correct.has_value()) return {};
    // Measured on a sample, it may dip.
    best = std::max(best,
                    static_cast<double>(*correct) / static_cast<double>(manifest.fidelity->tokens));
    qualities.push_back(best);
  }
  return best > 0 ? qualities : std::vector<double>();
}

// Running sums as fractions of the last one; empty if that says nothing.
std::vector<double> Shares(std::vector<double> parts) {
  double sum = 0;
  for (double& part : parts) part = sum += std::isfinite(part) ? std::max(0.0, part) : 0;
  if (!(sum > 0) || !std::isfinite(sum)) return {};
  for (double& part : parts) part /= sum;
  return parts;
}

}  // namespace

uint32_t FloorBands(const Manifest& manifest, Ratio floor) {
  const auto first = std::ranges::find_if(
      manifest.bands, [&](const BandEntry& band) { return band.edge >= floor; });
  const auto above = first - manifest.bands.begin();
  return static_cast<uint32_t>(first == manifest.bands.end() ? above : above + 1);
}

std::vector<double> PrefixQualities(const Manifest& manifest) {
  std::vector<double> qualities = FromFidelity(manifest);
  if (!qualities.empty()) return qualities;
  std::vector<double> masses, bytes;
  for (const BandEntry& band : manifest.bands) {
    masses.push_back(band.score_mass);
    bytes.push_back(static_cast<double>(band.encoded_bytes()));
  }
  qualities = Shares(std::move(masses));
  if (qualities.empty()) qualities = Shares(std::move(bytes));
  if (qualities.empty()) qualities.assign(manifest.bands.size(), 1);  // No bytes at all.
  return qualities;
}

double RecomputeCost(const Manifest& manifest) {
  const double tokens = static_cast<double>(manifest.logical_length());
  return tokens * (1 + tokens / kAttentionTokens);
}

EvictionObject DescribeForEviction(const Manifest& manifest, EvictionId id, uint32_t floor_bands) {
  EvictionObject object;
  object.id = id;
  object.recompute_cost = RecomputeCost(manifest);
  object.floor_bands = floor_bands;
  double below = 0;
  const std::vector<double> qualities = PrefixQualities(manifest);
  for (size_t band = 0; band < manifest.bands.size(); ++band) {
    object.bands.push_back({manifest.bands[band].encoded_bytes(), qualities[band] - below});
    below = qualities[band];
  }
  return object;
}

}  // namespace kvtier
