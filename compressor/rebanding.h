// Other bands from a stored object's own bytes, on a CPU, without the model: other edges, a byte
// budget, a rectangle. What is exact and what is not, and why: docs/adr/0009-re-banding.md.
//
// The order of pairs: stored band, then (where there is no system prompt) the first token of each
// head, then falling fp16 log score, then layer, head, position. So no pair crosses a stored edge.
//
//   KVTIER_ASSIGN_OR_RETURN(const Rebander rebander, Rebander::Create(std::move(stored)));
//   KVTIER_ASSIGN_OR_RETURN(const RebandPlan plan, rebander.Plan(edges));
//   plan.PrefixBytes(1);                                       // before a row is copied
//   KVTIER_ASSIGN_OR_RETURN(CompressedObject object, rebander.Pack(plan));
#ifndef KVTIER_COMPRESSOR_REBANDING_H_
#define KVTIER_COMPRESSOR_REBANDING_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/pair_order.h"
#include "kvcache/bands.h"
#include "kvcache/compressed_object.h"
#include "kvcache/manifest.h"
#include "kvcache/recipe.h"
#include "kvcache/segment_ref.h"

namespace kvtier {

// Bands 0..band_count-1 of an object, all layers and heads: what a fetch brings.
struct StoredBands {
  std::shared_ptr<const Manifest> manifest;
  uint32_t band_count = 0;
  std::vector<SegmentRef> segments;  // [band_count][layers], band-major

  Ratio ratio() const { return manifest->bands[band_count - 1].edge; }
  const SegmentRef& segment(BandIndex band, LayerIndex layer) const {
    return segments[band.value() * manifest->geometry.layer_count() + layer.value()];
  }
};

// Where every row will go. Made by a Rebander, for that Rebander.
struct RebandPlan {
  Key key;                   // Of the new object.
  std::string recipe;        // Of the new object.
  std::vector<Ratio> edges;  // Ascending; the last may be below 1.
  // [scored layers, kv_heads, ranked tokens] new band of each pair; edges.size(): in none.
  std::vector<uint8_t> band;
  std::vector<float> thresholds;     // [bands] as in a manifest
  std::vector<double> score_mass;    // [bands]
  std::vector<uint64_t> band_bytes;  // [bands] encoded bytes of the segments, all overhead counted
  // Encoded bytes of bands 0..band_count-1. REQUIRES: band_count <= edges.size()
  uint64_t PrefixBytes(uint32_t band_count) const;
};

// Immutable after Create; any thread may call. Holds the stored segments and 4 bytes per pair; a
// plan takes 1 byte per pair (and 4 more while it is made), Pack the new object's bytes. Time is
// linear in rows, save for rectangles, which sort the rows of each head.
class Rebander {
 public:
  // Verifies every byte.
  //   INVALID_ARGUMENT  no band, or segments that are not those of the bands
  //   DATA_LOSS         as VerifySegmentContent; or a row that two bands hold
  //   RESOURCE_EXHAUSTED more than limits::kRebandPairsMax pairs
  static absl::StatusOr<Rebander> Create(StoredBands stored);

  const Manifest& manifest() const { return *stored_.manifest; }
  // What can be reached: the highest edge that is here.
  Ratio ratio() const { return stored_.ratio(); }

  // Same key and recipe. INVALID_ARGUMENT: `edges` end above ratio().
  absl::StatusOr<RebandPlan> Plan(const BandEdges& edges) const;

  // The largest ratio whose bytes are at most `bytes_max`, as one band; a second band has the rest,
  // if there is any. Ratios are millionths: up to a million pairs one more pair would not fit,
  // above that one millionth more of them would not. INVALID_ARGUMENT naming the bytes of the least
  // ratio when those are too many.
  absl::StatusOr<RebandPlan> PlanWithin(uint64_t bytes_max) const;

  // One band with the same number of rows in every head of a layer (the layers share the budget by
  // score mass), or of the object: another selection, so another recipe, and a derived key.
  //   INVALID_ARGUMENT  `rectangle` is kNone; the recipe has no order over all heads; a head would
  //                     need rows of bands that are not here (named)
  absl::StatusOr<RebandPlan> PlanRectangle(Ratio ratio, Rectangle rectangle) const;

  // Moves the rows, as encoded bytes. The object has a fresh upload id; what does not follow from
  // the plan is the stored object's.
  // RESOURCE_EXHAUSTED: no memory for a segment.
  absl::StatusOr<CompressedObject> Pack(const RebandPlan& plan) const;

 private:
  Rebander(StoredBands stored, PairPlaces places)
      : stored_(std::move(stored)),
        places_(std::move(places)),
        protected_tokens_(stored_.manifest->protected_tokens()) {}

  // One past the last rank, in the order of `rule`, of what `ratio` keeps.
  uint64_t OrderEnd(SelectionRule rule, Ratio ratio) const;
  // INVALID_ARGUMENT: a head has fewer than `rows` rows here.
  absl::Status CheckHeads(const PairOrder& order, uint64_t rows) const;
  // INVALID_ARGUMENT: the best `slabs` slabs may not all be here.
  absl::Status CheckSlabs(const PairOrder& order, uint64_t slabs) const;
  // Fills bands, of slabs also thresholds. REQUIRES: the plan has its edges.
  absl::Status Cut(const PairOrder& order, RebandPlan& plan) const;
  // Same key and recipe. REQUIRES: `order` is of the recipe's rule; edges up to ratio().
  absl::StatusOr<RebandPlan> PlanBy(const PairOrder& order, std::span<const Ratio> edges) const;
  // Encoded bytes of each of `bands` bands, when `band_of(pair)` says which one a pair is in;
  // `bands`: in none. Visits pairs in flat order.
  template <typename BandOfPair>
  std::vector<uint64_t> CountBytes(size_t bands, BandOfPair band_of) const;
  // Fills bytes, score mass, and thresholds unless they are there.
  void Describe(RebandPlan& plan) const;
  std::vector<float> Thresholds(const RebandPlan& plan) const;
  std::optional<Fidelity> KeptFidelity(const RebandPlan& plan) const;

  StoredBands stored_;
  PairPlaces places_;
  uint64_t protected_tokens_;  // Kept, since the manifest parses its recipe.
};

// The plain twin of Rebander::Plan: reads every row, sorts them all, counts. The same bands.
absl::StatusOr<std::vector<uint8_t>> RebandReference(const StoredBands& stored,
                                                     const BandEdges& edges);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_REBANDING_H_
