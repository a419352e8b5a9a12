#include "compressor/packing.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "kvcache/half_rounding.h"
#include "kvcache/position_code.h"
#include "kvcache/recipe.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

const float16 kProtectedScore(std::numeric_limits<float>::infinity());

float16 StoredScore(float log_score) { return float16(std::clamp(log_score, -kHalfMax, kHalfMax)); }

// A band's threshold, finite as the rows' scores are: a score of 0 has none of its own.
float StoredThreshold(float log_score) { return std::max(log_score, -kHalfMax); }

// Rows that a sliding layer keeps of `length`: what later tokens can see.
uint64_t SlidingRows(uint64_t length, int64_t window) {
  return window > 0 ? std::min(length, static_cast<uint64_t>(window)) : length;
}

absl::Status CheckInputs(const DenseCache& cache, const ScoreTable& scores,
                         const BandAssignment& assignment, const BandEdges& edges,
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
  if (scores.layers != geometry.scored_layer_count() || scores.kv_heads != geometry.kv_heads ||
      scores.tokens != identity.ranked_tokens() || scores.pairs() != identity.scored_pairs()) {
    return absl::InvalidArgumentError(
        absl::StrCat("packing: scores of ", scores.layers, " layers x ", scores.kv_heads,
                     " heads x ", scores.tokens, " tokens do not fit the manifest"));
  }
  if (assignment.band.size() != scores.pairs() || assignment.thresholds.size() != edges.size() ||
      assignment.score_mass.size() != edges.size() ||
      std::any_of(assignment.band.begin(), assignment.band.end(),
                  [&](uint8_t band) { return band >= edges.size(); })) {
    return absl::InvalidArgumentError("packing: the band assignment does not fit scores and edges");
  }
  return absl::OkStatus();
}

// Where one head's rows go: [bands] positions, ascending.
using BandPositions = std::vector<std::vector<uint32_t>>;

// Rows of one head of a scored layer, protected ones first. `bands` is [ranked tokens].
void SplitHead(std::span<const uint8_t> bands, uint64_t protected_tokens,
               BandPositions& positions) {
  for (uint64_t p = 0; p < protected_tokens; ++p) positions[0].push_back(static_cast<uint32_t>(p));
  for (uint64_t t = 0; t < bands.size(); ++t) {
    positions[bands[t]].push_back(static_cast<uint32_t>(protected_tokens + t));
  }
}

// Makes `buffer` hold at least `bytes`; its content is lost.
absl::Status Grow(AlignedBytes& buffer, uint64_t bytes) {
  if (buffer.size() >= bytes) return absl::OkStatus();
  KVTIER_ASSIGN_OR_RETURN(buffer,
                          AlignedBytes::TryAllocate(bytes, AlignedBytes::Fill::kUninitialized));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompressedObject> PackObject(
    Backend& backend, const DenseCache& cache, const ScoreTable& scores,
    const BandAssignment& assignment, const BandEdges& edges, const Manifest& identity,
    const std::function<absl::Status(int64_t layers_done)>& on_layer, int64_t window) {
  KVTIER_RETURN_IF_ERROR(CheckInputs(cache, scores, assignment, edges, identity));
  const Geometry& geometry = identity.geometry;
  const uint32_t layers = geometry.layer_count();
  const uint64_t protected_tokens = identity.protected_tokens();

  const CodecId codec = CodecOfRecipe(identity.recipe);
  AlignedBytes raw_keys;  // [rows of one block, head_dim] on their way into a lossy codec.
  AlignedBytes raw_values;

  Manifest manifest = identity;
  manifest.bands.clear();
  for (uint32_t b = 0; b < edges.size(); ++b) {
    BandEntry& band = manifest.bands.emplace_back();
    band.edge = edges.edge(BandIndex(b));
    band.threshold = StoredThreshold(assignment.thresholds[b]);
    band.score_mass = assignment.score_mass[b];
    band.layers.resize(layers);
  }
  CompressedObject object;
  object.segments.resize(uint64_t{edges.size()} * layers);

  uint32_t scored_row = 0;
  for (uint32_t l = 0; l < layers; ++l) {
    const bool scored = geometry.layers[l] == LayerKind::kGlobal;
    std::vector<BandPositions> heads(geometry.kv_heads, BandPositions(edges.size()));
    for (uint32_t h = 0; h < geometry.kv_heads; ++h) {
      if (scored) {
        const uint64_t begin = (uint64_t{scored_row} * geometry.kv_heads + h) * scores.tokens;
        SplitHead(std::span(assignment.band).subspan(begin, scores.tokens), protected_tokens,
                  heads[h]);
      } else {
        const uint64_t length = identity.logical_length();
        for (uint64_t p = length - SlidingRows(length, window); p < length; ++p) {
          heads[h][0].push_back(static_cast<uint32_t>(p));
        }
      }
    }
    for (uint32_t b = 0; b < edges.size(); ++b) {
      std::vector<uint32_t> rows;
      for (const BandPositions& head : heads) rows.push_back(static_cast<uint32_t>(head[b].size()));
      KVTIER_ASSIGN_OR_RETURN(SegmentBuilder builder,
                              SegmentBuilder::Create(geometry, codec, rows));
      for (uint32_t h = 0; h < geometry.kv_heads; ++h) {
        const std::vector<uint32_t>& positions = heads[h][b];
        if (positions.empty()) continue;
        const HeadRowsMut out = builder.head(h);
        std::copy(positions.begin(), positions.end(), out.positions.begin());
        for (size_t i = 0; i < positions.size(); ++i) {
          out.log_scores[i] =
              scored && positions[i] >= protected_tokens
                  ? StoredScore(scores.at(scored_row, h, positions[i] - protected_tokens))
                  : kProtectedScore;
        }
        if (codec == CodecId::kRaw) {
          KVTIER_RETURN_IF_ERROR(
              backend.GatherRows(cache.layer(l), h, positions, out.keys, out.values));
          continue;
        }
        KVTIER_RETURN_IF_ERROR(Grow(raw_keys, positions.size() * geometry.row_bytes()));
        KVTIER_RETURN_IF_ERROR(Grow(raw_values, positions.size() * geometry.row_bytes()));
        KVTIER_RETURN_IF_ERROR(
            backend.GatherRows(cache.layer(l), h, positions, raw_keys.data(), raw_values.data()));
        const absl::Status encoded =
            EncodeHeadRows(geometry, codec, rows[h], raw_keys.data(), raw_values.data(), out);
        if (!encoded.ok()) {
          return absl::Status(encoded.code(),
                              absl::StrCat("packing: codec ", CodecName(codec), ": layer ", l,
                                           " head ", h, " band ", b, ": ", encoded.message()));
        }
      }
      SegmentBuilder::Sealed sealed = std::move(builder).Seal();
      manifest.bands[b].layers[l] = std::move(sealed.entry);
      object.segments[uint64_t{b} * layers + l] = SegmentRef::Own(std::move(sealed.bytes));
    }
    if (scored) ++scored_row;
    if (on_layer) KVTIER_RETURN_IF_ERROR(on_layer(l + 1));
  }
  KVTIER_RETURN_IF_ERROR(manifest.Validate());
  object.manifest = std::make_shared<const Manifest>(std::move(manifest));
  return object;
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
