// What `kvtierctl stat` says of one object beyond its summary, all from the manifest: how score
// mass and rows are spread over bands, layers and heads. Text, JSON, and a picture.
//
// Plain functions: any thread may call.
#ifndef KVTIER_SERVICES_CTL_OBJECT_REPORT_H_
#define KVTIER_SERVICES_CTL_OBJECT_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "kvcache/manifest.h"
#include "kvtier/v1/types.pb.h"

namespace kvtier::ctl {

// Bands 0..b together.
struct BandReport {
  Ratio edge;
  uint64_t bytes = 0;     // Encoded.
  uint64_t rows = 0;      // Ranked ones; protected and sliding rows are in every prefix.
  float threshold = 0;    // Log score of the last rank; +inf where the band ranks nothing.
  double mass_share = 0;  // Of this band alone, of the mass of all bands. 0 if there is no mass.
  double mass_below = 0;  // Of bands 0..b.
  std::optional<double> accuracy;  // Of repeating the context (Manifest::fidelity), in [0, 1].
};

struct ObjectReport {
  std::vector<BandReport> bands;
  std::vector<uint32_t> layers;  // The scored ones, by model layer.
  uint32_t kv_heads = 0;
  // [bands][layers.size() * kv_heads] ranked rows of bands 0..b over the ranked tokens, in [0, 1].
  std::vector<std::vector<double>> kept;
};

// REQUIRES: manifest.Validate() is ok.
ObjectReport MakeReport(const Manifest& manifest);

// The table of bands; `summary` says where they are.
std::string FormatReport(const ObjectReport& report, const v1::ObjectSummary& summary);
// How many heads keep how much in bands 0..`band`: ten lines of bars.
std::string FormatHeads(const ObjectReport& report, uint32_t band);
// Adds rows, shares, accuracy and kept fractions to the object's own JSON.
void AddReport(const ObjectReport& report, const Manifest& manifest, nlohmann::json& json);

// SVG: one heat map of kept fraction by layer and head for each edge below the last, and score mass
// (and accuracy, where it was measured) against ratio.
std::string PlotReport(const ObjectReport& report, const Manifest& manifest);

}  // namespace kvtier::ctl

#endif  // KVTIER_SERVICES_CTL_OBJECT_REPORT_H_
