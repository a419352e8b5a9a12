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
      if (place != kNoPlace) {
        return absl::DataLossError(absl::StrCat("re-banding: layer ", layer, " head ", head,
                                                " position ", position, " is in bands ",
                                                BandOfPlace(place), " and ", band));
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

// The log score of each band's last slab; +inf where a band has none.
std::vector<float> SlabThresholds(std::span<const double> log_scores,
                                  std::span<const uint64_t> ends) {
  std::vector<float> thresholds(ends.size(), kInfinity);
  for (size_t band = 0; band < ends.size(); ++band) {
    const uint64_t end = std::min<uint64_t>(ends[band], log_scores.size());
    if (end <= Begin(ends, band)) continue;
    const double last = log_scores[end - 1];
    thresholds[band] = static_cast<float>(std::isinf(last) ? 0.0 : last);  // First tokens: any.
  }
  return thresholds;
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
  PairPlaces places = {.layers = m.geometry.scored_layer_count(),
                       .kv_heads = m.geometry.kv_heads,
                       .tokens = m.ranked_tokens(),
                       .of_pair = std::vector<uint32_t>(m.scored_pairs(), kNoPlace)};
  uint64_t begin = 0;
  for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
    if (m.geometry.layers[layer] != LayerKind::kGlobal) continue;
    for (uint32_t head = 0; head < m.geometry.kv_heads; ++head, begin += places.tokens) {
      KVTIER_RETURN_IF_ERROR(
          ReadPlaces(stored, layer, head, std::span(places.of_pair).subspan(begin, places.tokens)));
    }
  }
  return Rebander(std::move(stored), std::move(places));
}

// --- Cutting -------------------------------------------------------------------------------------

uint64_t Rebander::OrderEnd(SelectionRule rule, Ratio ratio) const {
  const uint64_t pairs = KeptPairs(rule, ratio, places_.heads(), places_.tokens, places_.kv_heads);
  if (rule == SelectionRule::kPerHead) return pairs == 0 ? 0 : pairs / places_.heads();
  return rule == SelectionRule::kPerLayer ? pairs / places_.kv_heads : pairs;
}

absl::Status Rebander::CheckHeads(const PairOrder& order, uint64_t rows) const {
  for (uint64_t head = 0; head < places_.heads(); ++head) {
    const auto ranks = std::span(order.ranks).subspan(head * places_.tokens, places_.tokens);
    const auto here = static_cast<uint64_t>(
        std::ranges::count_if(ranks, [](uint32_t rank) { return rank != kNoRank; }));
    if (here >= rows) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "re-banding: scored layer ", head / places_.kv_heads, " head ", head % places_.kv_heads,
        " would need its best ", rows, " rows, the bands that are here (to ratio ",
        ratio().ToString(), ") have ", here));
  }
  return absl::OkStatus();
}

absl::Status Rebander::CheckSlabs(const PairOrder& order, uint64_t slabs) const {
  // What is here of an object that was cut by slabs are the best ones. Of another, a layer that
  // gave all it has might have had better ones than those of other layers.
  if (manifest().selection() == SelectionRule::kPerLayer) return absl::OkStatus();
  for (uint64_t layer = 0; layer < places_.layers; ++layer) {
    uint64_t here = 0;  // Slabs of the layer: one row each in its first head.
    uint64_t taken = 0;
    const uint64_t begin = layer * places_.kv_heads * places_.tokens;
    for (const uint32_t rank : std::span(order.ranks).subspan(begin, places_.tokens)) {
      if (rank != kNoRank) ++here;
      if (rank < slabs) ++taken;
    }
    if (taken < here || here == places_.tokens) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: scored layer ", layer, " would need more than ", here,
                     " rows in every head, the bands that are here (to ratio ", ratio().ToString(),
                     ") have no more"));
  }
  return absl::OkStatus();
}

absl::Status Rebander::Cut(const PairOrder& order, RebandPlan& plan) const {
  std::vector<uint64_t> ends;
  for (const Ratio edge : plan.edges) ends.push_back(OrderEnd(order.rule, edge));
  if (order.rule == SelectionRule::kPerHead) {
    KVTIER_RETURN_IF_ERROR(CheckHeads(order, ends.back()));
  } else if (order.rule == SelectionRule::kPerLayer) {
    KVTIER_RETURN_IF_ERROR(CheckSlabs(order, ends.back()));
    plan.thresholds = SlabThresholds(order.slab_log_scores, ends);
  }
  plan.band.reserve(order.ranks.size());
  for (const uint32_t rank : order.ranks) plan.band.push_back(BandOfRank(ends, rank));
  return absl::OkStatus();
}

// --- Planning ------------------------------------------------------------------------------------

absl::StatusOr<RebandPlan> Rebander::PlanBy(const PairOrder& order,
                                            std::span<const Ratio> edges) const {
  RebandPlan plan;
  plan.key = manifest().key;
  plan.recipe = manifest().recipe;
  plan.edges = {edges.begin(), edges.end()};
  KVTIER_RETURN_IF_ERROR(Cut(order, plan));
  Describe(plan);
  return plan;
}

absl::StatusOr<RebandPlan> Rebander::Plan(const BandEdges& edges) const {
  if (edges.last() > ratio()) {
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: the edges end at ", edges.last().ToString(),
                     ", the bands that are here at ", ratio().ToString()));
  }
  return PlanBy(OrderPairs(places_, manifest().selection()), edges.edges());
}

absl::StatusOr<RebandPlan> Rebander::PlanWithin(uint64_t bytes_max) const {
  // The order is made once; a ratio on the way is looked at for its bytes alone.
  const PairOrder order = OrderPairs(places_, manifest().selection());
  const auto bytes_up_to = [&](Ratio ratio) {
    const uint64_t end = OrderEnd(order.rule, ratio);
    return CountBytes(1, [&](uint64_t pair) { return order.ranks[pair] < end ? 0 : 1; })[0];
  };
  KVTIER_ASSIGN_OR_RETURN(Ratio fits, Ratio::FromMillionths(1));
  const uint64_t least = bytes_up_to(fits);
  if (least > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("re-banding: the least ratio takes ", least,
                     " bytes (protected rows are in every band 0), the budget is ", bytes_max));
  }
  const Ratio all = ratio();
  if (bytes_up_to(all) <= bytes_max) return PlanBy(order, {&all, 1});
  // A band's bytes never fall when its ratio rises: `fits` does, `above` does not.
  Ratio above = all;
  while (above.millionths() - fits.millionths() > 1) {
    KVTIER_ASSIGN_OR_RETURN(
        const Ratio middle,
        Ratio::FromMillionths(fits.millionths() + (above.millionths() - fits.millionths()) / 2));
    (bytes_up_to(middle) <= bytes_max ? fits : above) = middle;
  }
  const std::array<Ratio, 2> both = {fits, all};
  return PlanBy(order, both);
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
  KVTIER_RETURN_IF_ERROR(Cut(OrderPairs(places_, recipe.selection()), plan));
  Describe(plan);
  return plan;
}

// --- What a manifest says of the bands -----------------------------------------------------------

template <typename BandOfPair>
std::vector<uint64_t> Rebander::CountBytes(size_t bands, BandOfPair band_of) const {
  const Manifest& m = manifest();
  const CodecId codec = CodecOfRecipe(m.recipe);
  std::vector<uint64_t> bytes(bands);
  uint64_t pair = 0;
  for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
    const bool scored = m.geometry.layers[layer] == LayerKind::kGlobal;
    for (uint32_t head = 0; head < m.geometry.kv_heads; ++head) {
      std::array<BandRows, limits::kBandsMax + 1> rows{};
      const uint32_t unranked = static_cast<uint32_t>(
          scored ? protected_tokens_ : m.segment(BandIndex(0), LayerIndex(layer)).heads[head].rows);
      const uint64_t window_begin = scored ? 0 : m.logical_length() - unranked;
      for (uint32_t i = 0; i < unranked; ++i) {
        rows[0].Add(static_cast<uint32_t>(window_begin + i));
      }
      for (uint64_t token = 0; scored && token < places_.tokens; ++token, ++pair) {
        rows[band_of(pair)].Add(static_cast<uint32_t>(protected_tokens_ + token));
      }
      for (size_t band = 0; band < bands; ++band) {
        bytes[band] +=
            LayOutHeadBlock(m.geometry, codec, rows[band].rows, rows[band].position_bytes).bytes;
      }
    }
  }
  return bytes;
}

void Rebander::Describe(RebandPlan& plan) const {
  const Manifest& m = manifest();
  const size_t bands = plan.edges.size();
  plan.band_bytes = CountBytes(bands, [&](uint64_t pair) { return plan.band[pair]; });
  // fp16 score mass by new and stored band. A new band that has all of a stored one takes the mass
  // that the manifest has; parts of one share it as their fp16 scores do.
  std::vector<std::array<double, limits::kBandsMax>> mass(bands);
  std::array<double, limits::kBandsMax> stored_mass{};
  for (uint64_t pair = 0; pair < places_.of_pair.size(); ++pair) {
    const uint32_t place = places_.of_pair[pair];
    if (place == kNoPlace) continue;
    const double share = std::exp(double{ScoreOfPlace(place)});
    stored_mass[BandOfPlace(place)] += share;
    if (plan.band[pair] < bands) mass[plan.band[pair]][BandOfPlace(place)] += share;
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
  for (uint64_t pair = 0; pair < places_.of_pair.size(); ++pair) {
    const uint8_t band = plan.band[pair];
    if (band < last_place.size())
      last_place[band] = std::max(last_place[band], places_.of_pair[pair]);
    if (each_head ? (pair + 1) % places_.tokens != 0 : pair + 1 < places_.of_pair.size()) continue;
    for (size_t b = 0; b < last.size(); ++b) {
      if (last_place[b] == 0) continue;  // Nothing of this head; 0 is a score no number has.
      last[b] = std::min(last[b], ScoreOfPlace(last_place[b]));
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
  const uint64_t first_tokens = first_token_first ? places_.heads() : 0;
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
  KVTIER_CHECK_EQ(plan.band.size(), places_.of_pair.size()) << "a plan of another Rebander";
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
        if (!scored || position < protected_tokens_) return 0;
        return plan.band[first_pair + position - protected_tokens_];
      };
      KVTIER_ASSIGN_OR_RETURN(auto rows, SortRows(stored_, layer, head, bands, band_of));
      moved.push_back(std::move(rows));
      if (scored) first_pair += places_.tokens;
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
