// Ratios, band edges, and the arithmetic between ranks and bands (docs/recipes.md;
// docs/adr/0003-bands-not-ratios.md). All counting is in integers: r*N in floating point can fall
// just below an integer and lose a pair.
//
//   BandEdges edges = BandEdges::Default();             // 0.1 0.2 0.3 0.4 0.6 1.0
//   edges.edge(BandIndex(2)).Of(1000)                   // 300: bands 0..2 hold ranks [0, 300)
//   ChooseBands(edges, /*resident=*/6, want, least)     // how many bands serve a request
#ifndef KVTIER_KVCACHE_BANDS_H_
#define KVTIER_KVCACHE_BANDS_H_

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/ids.h"

namespace kvtier {

// The kept fraction, in millionths: (0, 1].
class Ratio {
 public:
  static constexpr uint32_t kOne = 1'000'000;
  constexpr Ratio() : millionths_(kOne) {}
  // Rounds once, half away from zero. INVALID_ARGUMENT for NaN, <= 0 (also after rounding), > 1.
  static absl::StatusOr<Ratio> FromDouble(double value);
  static absl::StatusOr<Ratio> FromMillionths(uint32_t millionths);
  uint32_t millionths() const { return millionths_; }
  double ToDouble() const { return millionths_ / double{kOne}; }
  std::string ToString() const;  // Shortest decimal: "0.3", "1".
  // floor(ratio * count), exact for every count below 2^44.
  uint64_t Of(uint64_t count) const;
  // ceil(ratio * count), as exact: what is left when floor((1 - ratio) * count) go.
  uint64_t RoundedUpOf(uint64_t count) const;
  friend auto operator<=>(Ratio, Ratio) = default;

 private:
  explicit constexpr Ratio(uint32_t millionths) : millionths_(millionths) {}
  uint32_t millionths_;
};

// Strictly ascending kept fractions. Band b holds ranks [k(b-1), k(b)). They end at 1, save for an
// object made from the lower bands of another (rebanding.h): it ends where those ended.
class BandEdges {
 public:
  static BandEdges Default();  // 0.1 0.2 0.3 0.4 0.6 1.0
  // INVALID_ARGUMENT: empty, more than limits::kBandsMax, not ascending, last is not 1.
  static absl::StatusOr<BandEdges> Create(std::span<const Ratio> edges);
  static absl::StatusOr<BandEdges> Parse(absl::string_view text);  // "0.1,0.3,1"
  // The same, but the last may be below 1.
  static absl::StatusOr<BandEdges> CreateTruncated(std::span<const Ratio> edges);
  static absl::StatusOr<BandEdges> ParseTruncated(absl::string_view text);

  uint32_t size() const { return static_cast<uint32_t>(edges_.size()); }
  Ratio edge(BandIndex band) const { return edges_[band.value()]; }
  std::span<const Ratio> edges() const { return edges_; }
  Ratio last() const { return edges_.back(); }
  bool whole() const { return last() == Ratio(); }  // They end at 1.
  // The band that holds `rank` of `pairs` ranked pairs. REQUIRES: rank < last().Of(pairs).
  BandIndex BandOfRank(uint64_t rank, uint64_t pairs) const;
  friend bool operator==(const BandEdges&, const BandEdges&) = default;

 private:
  explicit BandEdges(std::vector<Ratio> edges) : edges_(std::move(edges)) {}
  std::vector<Ratio> edges_;
};

// Number of bands that serve a request: up to the smallest resident edge >= `ratio`, else the
// highest resident edge if it is >= `min_ratio`, else NOT_FOUND.
// INVALID_ARGUMENT when min_ratio > ratio. `resident_bands` counts bands 0..n-1 that are there.
absl::StatusOr<uint32_t> ChooseBands(std::span<const Ratio> edges, uint32_t resident_bands,
                                     Ratio ratio, Ratio min_ratio);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_BANDS_H_
