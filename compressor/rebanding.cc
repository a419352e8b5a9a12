#include "compressor/rebanding.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/position_code.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A pair's place in the order, before ties: few enough values to count how many pairs have each.
//   stored band << 17  |  (not a first token) << 16  |  place of the fp16 score, 0 for the largest
constexpr uint32_t kScoreBits = 16;
constexpr uint32_t kScoreMask = (1u << kScoreBits) - 1;
constexpr uint32_t kBandShift = kScoreBits + 1;
// Behind every pair that is here: no band.
constexpr uint32_t kMissing = limits::kBandsMax << kBandShift;

// Place of a score among all fp16 numbers, the largest first; -0 is +0.
uint32_t ScorePlace(float16 score) {
  const uint32_t bits = score.bits == 0x8000u ? 0u : score.bits;
  const uint32_t ascending = (bits & 0x8000u) != 0 ? kScoreMask - bits : bits | 0x8000u;
  return kScoreMask - ascending;
}
float ScoreOf(uint32_t place) {
  const uint32_t ascending = kScoreMask - (place & kScoreMask);
  const uint32_t bits = (ascending & 0x8000u) != 0 ? ascending & 0x7FFFu : kScoreMask - ascending;
  return static_cast<float>(float16::FromBits(static_cast<uint16_t>(bits)));
}
uint32_t PlaceOf(uint32_t band, bool first_token, float16 score) {
  return (band << kBandShift) | (first_token ? 0u : 1u << kScoreBits) | ScorePlace(score);
}
uint32_t BandOf(uint32_t place) { return place >> kBandShift; }
bool IsFirstToken(uint32_t place) { return (place & (1u << kScoreBits)) == 0; }

HeadRange AllHeads(const Geometry& geometry) { return {0, geometry.kv_heads}; }

absl::Status CheckStored(const StoredBands& stored) {
  if (stored.manifest == nullptr) return absl::InvalidArgumentError("re-banding: no manifest");
  const Manifest& m = *stored.manifest;
  KVTIER_RETURN_IF_ERROR(m.Validate());
  const uint64_t layers = m.geometry.layer_count();
  if (stored.band_count == 0 || stored.band_count > m.bands.size() ||
      stored.segments.size() != stored.band_count * layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: ", stored.segments.size(), " segments for ", stored.band_count,
                     " bands of ", m.bands.size(), " x ", layers, " layers"));
  }
  for (uint32_t b = 0; b < stored.band_count; ++b) {
    for (uint32_t l = 0; l < layers; ++l) {
      const SegmentRef& segment = stored.segment(BandIndex(b), LayerIndex(l));
      KVTIER_RETURN_IF_ERROR(VerifySegmentContent(m, BandIndex(b), LayerIndex(l), segment.bytes()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<HeadRows> ReadRows(const StoredBands& stored, uint32_t band, uint32_t layer,
                                  uint32_t head) {
  const Manifest& m = *stored.manifest;
  return ReadHead(m.geometry, m.segment(BandIndex(band), LayerIndex(layer)), AllHeads(m.geometry),
                  stored.segment(BandIndex(band), LayerIndex(layer)).bytes(), head);
}

// Reads one head's rows into its places, [ranked tokens].
absl::Status ReadPlaces(const StoredBands& stored, uint32_t layer, uint32_t head,
                        std::span<uint32_t> places) {
  const Manifest& m = *stored.manifest;
  const bool first_token_first = PutsFirstTokenFirst(m.selection());
  const uint64_t protected_tokens = m.protected_tokens();  // Parses the recipe: not per row.
  for (uint32_t band = 0; band < stored.band_count; ++band) {
    KVTIER_ASSIGN_OR_RETURN(const HeadRows rows, ReadRows(stored, band, layer, head));
    KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> positions, ReadPositions(rows));
    for (uint32_t row = 0; row < rows.rows; ++row) {
      const uint32_t position = positions[row];
      if (position < protected_tokens) continue;
      uint32_t& place = places[position - protected_tokens];
      if (place != kMissing) {
        return absl::DataLossError(absl::StrCat("re-banding: layer ", layer, " head ", head,
                                                " position ", position, " is in bands ",
                                                BandOf(place), " and ", band));
      }
      place = PlaceOf(band, first_token_first && position == 0, rows.log_scores[row]);
    }
  }
  return absl::OkStatus();
}

// The first end above `rank`: the band of a rank; ends.size() if there is none.
uint8_t BandOfRank(std::span<const uint64_t> ends, uint64_t rank) {
  return static_cast<uint8_t>(std::upper_bound(ends.begin(), ends.end(), rank) - ends.begin());
}

uint64_t Begin(std::span<const uint64_t> ends, size_t band) {
  return band == 0 ? 0 : ends[band - 1];
}

std::vector<uint64_t> EndsOf(std::span<const Ratio> edges, const Manifest& manifest) {
  std::vector<uint64_t> ends;
  ends.reserve(edges.size());
  for (const Ratio edge : edges) ends.push_back(manifest.RankEnd(edge));
  return ends;
}

// Log of the sum of exp(scores).
double LogSum(std::span<const double> scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - largest);
  return largest + std::log(sum);
}

// What a new band gets of one head, counted by ascending position.
struct BandRows {
  uint32_t rows = 0;
  uint64_t position_bytes = 0;  // Of their position code.
  uint32_t next = 0;

  void Add(uint32_t position) {
    ++rows;
    position_bytes += PositionGapBytes(position - next);
    next = position + 1;
  }
};

// One row of a stored head, on its way to a new one.
struct MovedRow {
  uint8_t stored_band = 0;
  uint32_t row = 0;
  uint32_t position = 0;
};

// As encoded: a row is coded alone, so moving it loses nothing.
void CopyRow(const Geometry& geometry, CodecId codec, const HeadRows& from, const MovedRow& row,
             const HeadRowsMut& to, size_t at) {
  const uint64_t bytes = EncodedRowBytes(geometry, codec);
  to.positions[at] = row.position;
  to.log_scores[at] = from.log_scores[row.row];
  std::memcpy(to.keys + at * bytes, from.keys + row.row * bytes, bytes);
  std::memcpy(to.values + at * bytes, from.values + row.row * bytes, bytes);
  const uint64_t scales = EncodedScaleBytes(codec);
  if (scales == 0) return;
  std::memcpy(to.key_scales + at * scales, from.key_scales + row.row * scales, scales);
  std::memcpy(to.value_scales + at * scales, from.value_scales + row.row * scales, scales);
}

// The rows of one head for each new band, by position. `band_of` says where a position goes; a
// result past the last band: nowhere.
template <typename BandOfPosition>
absl::StatusOr<std::vector<std::vector<MovedRow>>> SortRows(const StoredBands& stored,
                                                            uint32_t layer, uint32_t head,
                                                            size_t bands, BandOfPosition band_of) {
  std::vector<std::optional<MovedRow>> at(stored.manifest->logical_length());
  for (uint32_t band = 0; band < stored.band_count; ++band) {
    KVTIER_ASSIGN_OR_RETURN(const HeadRows rows, ReadRows(stored, band, layer, head));
    KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> positions, ReadPositions(rows));
    for (uint32_t row = 0; row < rows.rows; ++row) {
      at[positions[row]] = MovedRow{static_cast<uint8_t>(band), row, positions[row]};
    }
  }
  std::vector<std::vector<MovedRow>> sorted(bands);
  for (uint64_t position = 0; position < at.size(); ++position) {
    if (!at[position].has_value()) continue;
    const size_t band = band_of(position);
    if (band < bands) sorted[band].push_back(*at[position]);
  }
  return sorted;
}

}  // namespace

uint64_t RebandPlan::PrefixBytes(uint32_t band_count) const {
  KVTIER_CHECK(band_count <= band_bytes.size());
  uint64_t bytes = 0;
  for (uint32_t b = 0; b < band_count; ++b) bytes += band_bytes[b];
  return bytes;
}

absl::StatusOr<Rebander> Rebander::Create(StoredBands stored) {
  KVTIER_RETURN_IF_ERROR(CheckStored(stored));
  const Manifest& m = *stored.manifest;
  // The pairs follow from the geometry, not from the rows that came: a few bytes can claim many.
  if (m.scored_pairs() > limits::kRebandPairsMax) {
    return absl::ResourceExhaustedError(absl::StrCat("re-banding: the object ranks ",
                                                     m.scored_pairs(), " pairs, at most ",
                                                     limits::kRebandPairsMax));
  }
  const uint64_t ranked_tokens = m.ranked_tokens();
  std::vector<uint32_t> places(m.scored_pairs(), kMissing);
  uint64_t begin = 0;
  for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
    if (m.geometry.layers[layer] != LayerKind::kGlobal) continue;
    for (uint32_t head = 0; head < m.geometry.kv_heads; ++head, begin += ranked_tokens) {
      KVTIER_RETURN_IF_ERROR(
          ReadPlaces(stored, layer, head, std::span(places).subspan(begin, ranked_tokens)));
    }
  }
  return Rebander(std::move(stored), std::move(places));
}

// --- Cutting -------------------------------------------------------------------------------------

std::vector<uint8_t> Rebander::CutAll(std::span<const uint64_t> rank_ends) const {
  // How many pairs come before those with a given place; then, in flat order, the next of them.
  std::vector<uint64_t> rank(kMissing + 2);
  for (const uint32_t place : places_) ++rank[place + 1];
  for (size_t place = 1; place < rank.size(); ++place) rank[place] += rank[place - 1];
  std::vector<uint8_t> bands(places_.size(), static_cast<uint8_t>(rank_ends.size()));
  for (size_t i = 0; i < places_.size(); ++i) {
    if (places_[i] != kMissing) bands[i] = BandOfRank(rank_ends, rank[places_[i]]++);
  }
  return bands;
}

std::vector<uint32_t> Rebander::SortedHead(uint64_t layer, uint64_t head) const {
  const uint64_t begin = (layer * kv_heads() + head) * tokens();
  std::vector<uint32_t> order;
  for (uint64_t token = 0; token < tokens(); ++token) {
    if (places_[begin + token] != kMissing) order.push_back(static_cast<uint32_t>(token));
  }
  std::ranges::stable_sort(order, {}, [&](uint32_t token) { return places_[begin + token]; });
  return order;
}

absl::StatusOr<std::vector<uint8_t>> Rebander::CutHeads(std::span<const uint64_t> rows) const {
  std::vector<uint8_t> bands(places_.size(), static_cast<uint8_t>(rows.size()));
  for (uint64_t layer = 0; layer < scored_layers(); ++layer) {
    for (uint64_t head = 0; head < kv_heads(); ++head) {
      const std::vector<uint32_t> order = SortedHead(layer, head);
      if (order.size() < rows.back()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "re-banding: scored layer ", layer, " head ", head, " would need its best ",
            rows.back(), " rows, the bands that are here (to ratio ", ratio().ToString(), ") have ",
            order.size()));
      }
      const uint64_t begin = (layer * kv_heads() + head) * tokens();
      for (size_t rank = 0; rank < order.size(); ++rank) {
        bands[begin + order[rank]] = BandOfRank(rows, rank);
      }
    }
  }
  return bands;
}

absl::StatusOr<std::vector<uint8_t>> Rebander::CutSlabs(std::span<const uint64_t> slabs,
                                                        std::vector<float>& thresholds) const {
  struct Slab {
    double log_score;
    uint64_t layer;
    uint64_t index;
  };
  std::vector<Slab> order;
  std::vector<std::vector<uint32_t>> heads;  // [scored layers * kv_heads]
  std::vector<uint64_t> slabs_here;          // [scored layers]
  std::vector<double> scores(kv_heads());
  for (uint64_t layer = 0; layer < scored_layers(); ++layer) {
    uint64_t here = tokens();
    for (uint64_t head = 0; head < kv_heads(); ++head) {
      heads.push_back(SortedHead(layer, head));
      here = std::min<uint64_t>(here, heads.back().size());
    }
    slabs_here.push_back(here);
    double previous = std::numeric_limits<double>::infinity();
    for (uint64_t index = 0; index < here; ++index) {
      bool first_tokens = false;
      for (uint64_t head = 0; head < kv_heads(); ++head) {
        const uint64_t row = layer * kv_heads() + head;
        const uint32_t place = places_[row * tokens() + heads[row][index]];
        scores[head] = ScoreOf(place);
        first_tokens = IsFirstToken(place);  // Of one head, then of all: it is each one's best.
      }
      const double log_score = LogSum(scores);
      // Each head's rows fall, so slabs do; rounding must not turn that round. First tokens come
      // before their score.
      if (!first_tokens) previous = std::min(previous, log_score);
      order.push_back(
          {first_tokens ? std::numeric_limits<double>::infinity() : previous, layer, index});
    }
  }
  std::ranges::stable_sort(order, std::ranges::greater(), &Slab::log_score);

  std::vector<uint8_t> bands(places_.size(), static_cast<uint8_t>(slabs.size()));
  std::vector<uint64_t> taken(scored_layers());
  thresholds.assign(slabs.size(), kInfinity);
  const uint64_t wanted = std::min<uint64_t>(slabs.back(), order.size());
  for (uint64_t rank = 0; rank < wanted; ++rank) {
    const Slab& slab = order[rank];
    const uint8_t band = BandOfRank(slabs, rank);
    for (uint64_t head = 0; head < kv_heads(); ++head) {
      const uint64_t row = slab.layer * kv_heads() + head;
      bands[row * tokens() + heads[row][slab.index]] = band;
    }
    thresholds[band] = static_cast<float>(
        std::isinf(slab.log_score) ? 0.0 : slab.log_score);  // Of first tokens alone: any number.
    ++taken[slab.layer];
  }
  // What is here of an object that was cut by slabs are the best ones. Of another, a layer that
  // gave all it has might have had better ones than those of other layers.
  const bool cut_by_slabs = manifest().selection() == SelectionRule::kPerLayer;
  for (uint64_t layer = 0; !cut_by_slabs && layer < scored_layers(); ++layer) {
    if (taken[layer] < slabs_here[layer] || slabs_here[layer] == tokens()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: scored layer ", layer, " would need more than ",
                     slabs_here[layer], " rows in every head, the bands that are here (to ratio ",
                     ratio().ToString(), ") have no more"));
  }
  return bands;
}

// --- Planning ------------------------------------------------------------------------------------

absl::StatusOr<RebandPlan> Rebander::Plan(const BandEdges& edges) const {
  if (edges.last() > ratio()) {
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: the edges end at ", edges.last().ToString(),
                     ", the bands that are here at ", ratio().ToString()));
  }
  RebandPlan plan;
  plan.key = manifest().key;
  plan.recipe = manifest().recipe;
  plan.edges = {edges.edges().begin(), edges.edges().end()};
  std::vector<uint64_t> ends = EndsOf(plan.edges, manifest());
  switch (manifest().selection()) {
    case SelectionRule::kExact:
    case SelectionRule::kKvpress:
    case SelectionRule::kWholeHeads:
      plan.band = CutAll(ends);
      break;
    case SelectionRule::kPerHead: {
      const uint64_t heads = scored_layers() * kv_heads();
      for (uint64_t& end : ends) end = heads == 0 ? 0 : end / heads;
      KVTIER_ASSIGN_OR_RETURN(plan.band, CutHeads(ends));
      break;
    }
    case SelectionRule::kPerLayer:
      for (uint64_t& end : ends) end /= kv_heads();
      KVTIER_ASSIGN_OR_RETURN(plan.band, CutSlabs(ends, plan.thresholds));
      break;
  }
  Describe(plan);
  return plan;
}

absl::StatusOr<RebandPlan> Rebander::PlanWithin(uint64_t bytes_max) const {
  const auto plan_to = [this](uint32_t millionths) -> absl::StatusOr<RebandPlan> {
    KVTIER_ASSIGN_OR_RETURN(const Ratio ratio, Ratio::FromMillionths(millionths));
    KVTIER_ASSIGN_OR_RETURN(const BandEdges edge, BandEdges::CreateTruncated({&ratio, 1}));
    return Plan(edge);
  };
  KVTIER_ASSIGN_OR_RETURN(const RebandPlan least, plan_to(1));
  if (least.PrefixBytes(1) > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: the least ratio takes ", least.PrefixBytes(1),
                     " bytes (protected rows are in every band 0), the budget is ", bytes_max));
  }
  KVTIER_ASSIGN_OR_RETURN(RebandPlan most, plan_to(ratio().millionths()));
  if (most.PrefixBytes(1) <= bytes_max) return most;
  // A band's bytes never fall when its ratio rises: `fits` does, `above` does not.
  uint32_t fits = 1;
  uint32_t above = ratio().millionths();
  while (above - fits > 1) {
    const uint32_t middle = fits + (above - fits) / 2;
    KVTIER_ASSIGN_OR_RETURN(const RebandPlan plan, plan_to(middle));
    (plan.PrefixBytes(1) <= bytes_max ? fits : above) = middle;
  }
  KVTIER_ASSIGN_OR_RETURN(const Ratio found, Ratio::FromMillionths(fits));
  const std::array<Ratio, 2> both = {found, ratio()};
  KVTIER_ASSIGN_OR_RETURN(const BandEdges edges, BandEdges::CreateTruncated(both));
  return Plan(edges);
}

absl::StatusOr<RebandPlan> Rebander::PlanRectangle(Ratio ratio, Rectangle rectangle) const {
  if (rectangle == Rectangle::kNone) {
    return absl::InvalidArgumentError("re-banding: a rectangle of what? a layer or the object");
  }
  KVTIER_ASSIGN_OR_RETURN(Recipe recipe, Recipe::Parse(manifest().recipe));
  if (recipe.selection() != SelectionRule::kExact) {
    return absl::InvalidArgumentError(absl::StrCat("re-banding: recipe ", manifest().recipe,
                                                   " has no order over all heads to cut"));
  }
  recipe.rectangle = rectangle;
  RebandPlan plan;
  plan.recipe = recipe.ToString();
  KVTIER_ASSIGN_OR_RETURN(plan.key, DeriveKey(manifest().key, plan.recipe));
  plan.edges = {ratio};
  if (rectangle == Rectangle::kObject) {
    const std::array<uint64_t, 1> rows = {ratio.Of(tokens())};
    KVTIER_ASSIGN_OR_RETURN(plan.band, CutHeads(rows));
  } else {
    const std::array<uint64_t, 1> slabs = {ratio.Of(scored_layers() * tokens())};
    KVTIER_ASSIGN_OR_RETURN(plan.band, CutSlabs(slabs, plan.thresholds));
  }
  Describe(plan);
  return plan;
}

// --- What a manifest says of the bands -----------------------------------------------------------

void Rebander::Describe(RebandPlan& plan) const {
  const Manifest& m = manifest();
  const size_t bands = plan.edges.size();
  plan.band_bytes.assign(bands, 0);
  const CodecId codec = CodecOfRecipe(m.recipe);
  // fp16 score mass by new and stored band. A new band that has all of a stored one takes the mass
  // that the manifest has; parts of one share it as their fp16 scores do.
  std::vector<std::array<double, limits::kBandsMax>> mass(bands);
  std::array<double, limits::kBandsMax> stored_mass{};
  uint64_t pair = 0;
  for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
    const bool scored = m.geometry.layers[layer] == LayerKind::kGlobal;
    for (uint32_t head = 0; head < m.geometry.kv_heads; ++head) {
      std::array<BandRows, limits::kBandsMax + 1> rows{};
      const uint32_t unranked = static_cast<uint32_t>(
          scored ? protected_tokens()
                 : m.segment(BandIndex(0), LayerIndex(layer)).heads[head].rows);
      const uint64_t window_begin = scored ? 0 : m.logical_length() - unranked;
      for (uint32_t i = 0; i < unranked; ++i) {
        rows[0].Add(static_cast<uint32_t>(window_begin + i));
      }
      for (uint64_t token = 0; scored && token < tokens(); ++token, ++pair) {
        const uint32_t place = places_[pair];
        rows[plan.band[pair]].Add(static_cast<uint32_t>(protected_tokens() + token));
        if (place == kMissing) continue;
        const double share = std::exp(double{ScoreOf(place)});
        stored_mass[BandOf(place)] += share;
        if (plan.band[pair] < bands) mass[plan.band[pair]][BandOf(place)] += share;
      }
      for (size_t band = 0; band < bands; ++band) {
        plan.band_bytes[band] +=
            LayOutHeadBlock(m.geometry, codec, rows[band].rows, rows[band].position_bytes).bytes;
      }
    }
  }
  plan.score_mass.assign(bands, 0);
  for (size_t band = 0; band < bands; ++band) {
    for (uint32_t stored = 0; stored < stored_.band_count; ++stored) {
      if (mass[band][stored] == 0) continue;
      const double exact = m.bands[stored].score_mass;
      plan.score_mass[band] += mass[band][stored] == stored_mass[stored]
                                   ? exact
                                   : exact * (mass[band][stored] / stored_mass[stored]);
    }
  }
  if (plan.thresholds.empty()) plan.thresholds = Thresholds(plan);
}

std::vector<float> Rebander::Thresholds(const RebandPlan& plan) const {
  const Manifest& m = manifest();
  const bool each_head = SelectionOfRecipe(plan.recipe) == SelectionRule::kPerHead;
  // The score of the last pair of each new band: of all pairs, or the lowest of each head's last.
  std::vector<float> last(plan.edges.size(), kInfinity);
  std::vector<uint32_t> last_place(plan.edges.size(), 0);
  for (uint64_t pair = 0; pair < places_.size(); ++pair) {
    const uint8_t band = plan.band[pair];
    if (band < last_place.size()) last_place[band] = std::max(last_place[band], places_[pair]);
    if (each_head ? (pair + 1) % tokens() != 0 : pair + 1 < places_.size()) continue;
    for (size_t b = 0; b < last.size(); ++b) {
      if (last_place[b] == 0) continue;  // Nothing of this head; 0 is a score no number has.
      last[b] = std::min(last[b], ScoreOf(last_place[b]));
      last_place[b] = 0;
    }
  }
  if (plan.recipe != m.recipe) return last;  // Another selection: stored thresholds say nothing.

  // Stored thresholds are exact. fp16 may round past them: hold the others between their
  // neighbours.
  const std::vector<uint64_t> ends = EndsOf(plan.edges, m);
  const std::vector<uint64_t> stored_ends =
      EndsOf(std::span<const Ratio>(m.edges()).first(stored_.band_count), m);
  const bool first_token_first = m.system_tokens == 0 && PutsFirstTokenFirst(m.selection());
  const uint64_t first_tokens = first_token_first ? scored_layers() * kv_heads() : 0;
  for (size_t b = 0; b < last.size(); ++b) {
    if (Begin(ends, b) == ends[b]) continue;
    for (uint32_t s = 0; s < stored_.band_count; ++s) {
      if (Begin(stored_ends, s) == stored_ends[s]) continue;
      const float exact = m.bands[s].threshold;
      if (stored_ends[s] == ends[b]) {
        last[b] = exact;
      } else if (ends[b] > first_tokens && stored_ends[s] > first_tokens) {
        last[b] = stored_ends[s] < ends[b] ? std::min(last[b], exact) : std::max(last[b], exact);
      }
    }
  }
  return last;
}

std::optional<Fidelity> Rebander::KeptFidelity(const RebandPlan& plan) const {
  const Manifest& m = manifest();
  if (!m.fidelity.has_value() || plan.recipe != m.recipe) return std::nullopt;
  Fidelity kept = {m.fidelity->chunks, m.fidelity->tokens, {}};
  bool any = false;
  for (const Ratio edge : plan.edges) {
    std::optional<uint64_t> correct;  // The same pairs, so the same answers.
    for (uint32_t s = 0; s < stored_.band_count; ++s) {
      if (m.RankEnd(m.bands[s].edge) != m.RankEnd(edge)) continue;
      if (!correct.has_value()) correct = m.fidelity->correct[s];
    }
    any = any || correct.has_value();
    kept.correct.push_back(correct);
  }
  return any ? std::optional(std::move(kept)) : std::nullopt;
}

// --- Packing -------------------------------------------------------------------------------------

absl::StatusOr<CompressedObject> Rebander::Pack(const RebandPlan& plan) const {
  KVTIER_CHECK_EQ(plan.band.size(), places_.size()) << "a plan of another Rebander";
  const Manifest& m = manifest();
  const Geometry& geometry = m.geometry;
  const CodecId codec = CodecOfRecipe(m.recipe);
  const uint32_t layers = geometry.layer_count();
  const size_t bands = plan.edges.size();

  Manifest result = m;
  result.upload_id = MakeUploadId();
  result.key = plan.key;
  result.recipe = plan.recipe;
  if (plan.recipe != m.recipe) result.last_block_hash = TokenBlockHash();  // Of the old recipe.
  result.fidelity = KeptFidelity(plan);
  result.bands.assign(bands, BandEntry());
  for (size_t b = 0; b < bands; ++b) {
    result.bands[b].edge = plan.edges[b];
    result.bands[b].threshold = plan.thresholds[b];
    result.bands[b].score_mass = plan.score_mass[b];
    result.bands[b].layers.resize(layers);
  }
  CompressedObject object;
  object.segments.resize(bands * layers);
  uint64_t first_pair = 0;  // Of the head.
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const bool scored = geometry.layers[layer] == LayerKind::kGlobal;
    std::vector<std::vector<std::vector<MovedRow>>> moved;  // [kv_heads][bands]
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      const auto band_of = [&](uint64_t position) -> size_t {
        if (!scored || position < protected_tokens()) return 0;
        return plan.band[first_pair + position - protected_tokens()];
      };
      KVTIER_ASSIGN_OR_RETURN(auto rows, SortRows(stored_, layer, head, bands, band_of));
      moved.push_back(std::move(rows));
      if (scored) first_pair += tokens();
    }
    for (size_t b = 0; b < bands; ++b) {
      std::vector<uint32_t> rows;
      for (const auto& head : moved) rows.push_back(static_cast<uint32_t>(head[b].size()));
      KVTIER_ASSIGN_OR_RETURN(SegmentBuilder builder,
                              SegmentBuilder::Create(geometry, codec, rows));
      for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
        if (rows[head] == 0) continue;
        std::vector<HeadRows> from;  // [stored bands]
        for (uint32_t band = 0; band < stored_.band_count; ++band) {
          KVTIER_ASSIGN_OR_RETURN(from.emplace_back(), ReadRows(stored_, band, layer, head));
        }
        const HeadRowsMut to = builder.head(head);
        for (uint32_t i = 0; i < rows[head]; ++i) {
          const MovedRow& row = moved[head][b][i];
          CopyRow(geometry, codec, from[row.stored_band], row, to, i);
        }
      }
      SegmentBuilder::Sealed sealed = std::move(builder).Seal();
      result.bands[b].layers[layer] = std::move(sealed.entry);
      object.segments[b * layers + layer] = SegmentRef::Own(std::move(sealed.bytes));
    }
  }
  KVTIER_RETURN_IF_ERROR(result.Validate());
  object.manifest = std::make_shared<const Manifest>(std::move(result));
  return object;
}

}  // namespace kvtier
