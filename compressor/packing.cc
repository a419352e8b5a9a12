#include "compressor/packing.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/host_packer.h"
#include "kvcache/half_rounding.h"
#include "kvcache/position_code.h"
#include "kvcache/recipe.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

// A band's threshold, finite as the rows' scores are: a score of 0 has none of its own.
float StoredThreshold(float log_score) { return std::max(log_score, -kHalfMax); }

// Rows that a sliding layer keeps of `length`: what later tokens can see.
uint64_t SlidingRows(uint64_t length, int64_t window) {
  return window > 0 ? std::min(length, static_cast<uint64_t>(window)) : length;
}

absl::Status CheckInputs(const DenseCache& cache, const BandCounts& counts, const BandEdges& edges,
                         const Manifest& identity) {
  const Geometry& geometry = identity.geometry;
  if (cache.geometry() != geometry) {
    return absl::InvalidArgumentError("packing: the cache has another geometry than the manifest");
  }
  if (cache.length() != static_cast<int64_t>(identity.logical_length())) {
    return absl::InvalidArgumentError(absl::StrCat("packing: the cache holds ", cache.length(),
                                                   " rows, the manifest says ",
                                                   identity.logical_length()));
  }
  if (counts.layers != geometry.scored_layer_count() || counts.kv_heads != geometry.kv_heads ||
      counts.tokens != identity.ranked_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("packing: scores of ", counts.layers, " layers x ", counts.kv_heads,
                     " heads x ", counts.tokens, " tokens do not fit the manifest"));
  }
  if (counts.bands() != edges.size()) {
    return absl::InvalidArgumentError(absl::StrCat("packing: a ranking into ", counts.bands(),
                                                   " bands, ", edges.size(), " edges"));
  }
  return absl::OkStatus();
}

// The last rows of a sliding layer, all in band 0.
absl::Status FillSliding(const SegmentFill& fill, std::span<const uint32_t> positions,
                         HeadPacker& heads, SegmentBuilder& segment) {
  for (uint32_t head = 0; head < fill.geometry->kv_heads; ++head) {
    const HeadRowsMut out = segment.head(head);
    std::fill(out.log_scores.begin(), out.log_scores.end(), ProtectedScore());
    KVTIER_RETURN_IF_ERROR(heads.Fill(fill, head, positions, out));
  }
  return absl::OkStatus();
}

// Destroyed from the last member on: nothing writes into a builder that is gone.
struct SegmentUnderWay {
  uint32_t layer = 0;
  uint32_t band = 0;
  std::unique_ptr<SegmentBuilder> builder;
  std::unique_ptr<SegmentFilling> filling;  // Null: filled.
};

}  // namespace

absl::StatusOr<CompressedObject> PackObject(
    Backend& backend, const DenseCache& cache, RankedRows& ranked, const BandEdges& edges,
    const Manifest& identity, const std::function<absl::Status(int64_t layers_done)>& on_layer,
    int64_t window) {
  const BandCounts& counts = ranked.counts();
  KVTIER_RETURN_IF_ERROR(CheckInputs(cache, counts, edges, identity));
  const Geometry& geometry = identity.geometry;
  const uint32_t layers = geometry.layer_count();
  const CodecId codec = CodecOfRecipe(identity.recipe);

  Manifest manifest = identity;
  manifest.bands.clear();
  for (uint32_t b = 0; b < edges.size(); ++b) {
    BandEntry& band = manifest.bands.emplace_back();
    band.edge = edges.edge(BandIndex(b));
    band.threshold = StoredThreshold(counts.thresholds[b]);
    band.score_mass = counts.score_mass[b];
    band.layers.resize(layers);
  }
  CompressedObject object;
  object.segments.resize(uint64_t{edges.size()} * layers);

  const uint64_t length = identity.logical_length();
  std::vector<uint32_t> window_rows(SlidingRows(length, window));  // Positions.
  std::iota(window_rows.begin(), window_rows.end(),
            static_cast<uint32_t>(length - window_rows.size()));
  HeadPacker sliding_heads(backend);
  // The segment before the one that is begun: while its checksums are computed here, a device
  // gathers the next and sends it.
  std::optional<SegmentUnderWay> before;
  const auto finish_before = [&]() -> absl::Status {
    if (!before.has_value()) return absl::OkStatus();
    if (before->filling != nullptr) KVTIER_RETURN_IF_ERROR(before->filling->Wait());
    before->filling.reset();
    SegmentBuilder::Sealed sealed = std::move(*before->builder).Seal();
    manifest.bands[before->band].layers[before->layer] = std::move(sealed.entry);
    object.segments[uint64_t{before->band} * layers + before->layer] =
        SegmentRef::Own(std::move(sealed.bytes));
    before.reset();
    return absl::OkStatus();
  };
  uint32_t scored_layer = 0;
  for (uint32_t l = 0; l < layers; ++l) {
    const bool scored = geometry.layers[l] == LayerKind::kGlobal;
    for (uint32_t b = 0; b < edges.size(); ++b) {
      const SegmentFill fill{.layer = cache.layer(l),
                             .geometry = &geometry,
                             .model_layer = l,
                             .scored_layer = scored_layer,
                             .band = b,
                             .protected_tokens = identity.protected_tokens(),
                             .codec = codec};
      std::vector<uint32_t> rows(geometry.kv_heads);
      for (uint32_t h = 0; h < geometry.kv_heads; ++h) {
        rows[h] = scored   ? fill.RowsOf(counts, h)
                  : b == 0 ? static_cast<uint32_t>(window_rows.size())
                           : 0;
      }
      KVTIER_ASSIGN_OR_RETURN(SegmentBuilder builder,
                              SegmentBuilder::Create(geometry, codec, rows));
      SegmentUnderWay next{.layer = l,
                           .band = b,
                           .builder = std::make_unique<SegmentBuilder>(std::move(builder)),
                           .filling = nullptr};
      if (scored) {
        absl::StatusOr<std::unique_ptr<SegmentFilling>> begun =
            ranked.BeginSegment(fill, *next.builder);
        if (absl::IsResourceExhausted(begun.status()) && before.has_value()) {
          // No room for two at once.
          KVTIER_RETURN_IF_ERROR(finish_before());
          begun = ranked.BeginSegment(fill, *next.builder);
        }
        KVTIER_RETURN_IF_ERROR(begun.status());
        next.filling = *std::move(begun);
      } else if (b == 0) {
        KVTIER_RETURN_IF_ERROR(FillSliding(fill, window_rows, sliding_heads, *next.builder));
      }
      KVTIER_RETURN_IF_ERROR(finish_before());
      before.emplace(std::move(next));
    }
    if (scored) ++scored_layer;
    // The layer's last segment finishes beside the next layer's first.
    if (l + 1 == layers) KVTIER_RETURN_IF_ERROR(finish_before());
    if (on_layer) KVTIER_RETURN_IF_ERROR(on_layer(l + 1));
  }
  KVTIER_RETURN_IF_ERROR(manifest.Validate());
  object.manifest = std::make_shared<const Manifest>(std::move(manifest));
  return object;
}

absl::StatusOr<CompressedObject> PackObject(
    Backend& backend, const DenseCache& cache, const ScoreTable& scores,
    const BandAssignment& assignment, const BandEdges& edges, const Manifest& identity,
    const std::function<absl::Status(int64_t layers_done)>& on_layer, int64_t window) {
  const uint64_t pairs = uint64_t{scores.layers} * scores.kv_heads * scores.tokens;
  // Sizes that fit nothing are named with what they should fit.
  const BandCounts sizes{.layers = scores.layers,
                         .kv_heads = scores.kv_heads,
                         .tokens = scores.tokens,
                         .thresholds = std::vector<float>(edges.size()),
                         .score_mass = {},
                         .rows = {}};
  KVTIER_RETURN_IF_ERROR(CheckInputs(cache, sizes, edges, identity));
  if (scores.pairs() != pairs || assignment.band.size() != pairs ||
      assignment.thresholds.size() != edges.size() ||
      assignment.score_mass.size() != edges.size() ||
      std::any_of(assignment.band.begin(), assignment.band.end(),
                  [&](uint8_t band) { return band >= edges.size(); })) {
    return absl::InvalidArgumentError("packing: the band assignment does not fit scores and edges");
  }
  // Not owned: both outlive this call.
  const std::shared_ptr<const void> nobody;
  HostRankedRows ranked(backend, std::shared_ptr<const ScoreTable>(nobody, &scores),
                        std::shared_ptr<const BandAssignment>(nobody, &assignment));
  return PackObject(backend, cache, ranked, edges, identity, on_layer, window);
}

uint64_t EstimatePackedBytes(const Geometry& geometry, uint64_t system_tokens,
                             uint64_t context_tokens, const BandEdges& edges, CodecId codec,
                             int64_t window) {
  const uint64_t scored_heads = uint64_t{geometry.scored_layer_count()} * geometry.kv_heads;
  const uint64_t heads = uint64_t{geometry.layer_count()} * geometry.kv_heads;
  const bool plain = StoresPlainPositions(codec);
  const uint64_t position_bytes = plain ? sizeof(uint32_t) : kPositionCodeBytesMin;
  const uint64_t row_bytes = 2 * (EncodedRowBytes(geometry, codec) + EncodedScaleBytes(codec)) +
                             sizeof(float16) + position_bytes;
  // Positions, scores, keys, values; where the codec has them, two arrays of scales.
  const uint64_t arrays = plain ? 4 : 6;
  const uint64_t scored_bytes =
      (system_tokens + context_tokens) * row_bytes + edges.size() * arrays * kSegmentAlignment / 2;
  const uint64_t length = system_tokens + context_tokens;
  const uint64_t rows = SlidingRows(length, window);  // Consecutive: only the first has a gap.
  const uint64_t code_bytes =
      PositionGapBytes(static_cast<uint32_t>(length - rows)) + rows * kPositionCodeBytesMin - 1;
  const uint64_t sliding_bytes =
      LayOutHeadBlock(geometry, codec, static_cast<uint32_t>(rows), code_bytes).bytes;
  return scored_heads * scored_bytes + (heads - scored_heads) * sliding_bytes;
}

}  // namespace kvtier
