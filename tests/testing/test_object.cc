#include "tests/testing/test_object.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/half.h"
#include "base/log.h"
#include "kvcache/bands.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

template <typename Id>
Id MakeId(uint64_t seed, uint64_t salt) {
  std::mt19937_64 random(seed * 1'000'003 + salt);
  std::array<std::byte, Id::kSize> bytes;
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return Id(bytes);
}

// The natural log score of a rank: strictly falling, all of it inside what fp16 can hold.
float LogScore(uint64_t rank, uint64_t pairs) {
  return -10.0f * static_cast<float>(rank + 1) / static_cast<float>(pairs);
}

// For each (layer, head): which position has which rank.
struct Ranking {
  uint64_t pairs = 0;
  std::vector<uint64_t> rank;  // [layers, kv_heads, context_tokens]
};

Ranking MakeRanking(const Manifest& manifest, std::mt19937_64& random) {
  Ranking ranking;
  ranking.pairs = manifest.scored_pairs();
  ranking.rank.resize(ranking.pairs);
  for (uint64_t i = 0; i < ranking.pairs; ++i) ranking.rank[i] = i;
  // Not std::shuffle: its result differs between standard libraries.
  for (uint64_t i = ranking.pairs; i > 1; --i) {
    std::swap(ranking.rank[i - 1], ranking.rank[random() % i]);
  }
  return ranking;
}

struct Row {
  uint32_t position;
  float log_score;
};

// Rows of one head of one band, ascending by position. `layer`: counted among those that are
// scored.
std::vector<Row> RowsOf(const Manifest& manifest, const BandEdges& edges, const Ranking& ranking,
                        BandIndex band, uint32_t layer, uint32_t head) {
  std::vector<Row> rows;
  if (band.value() == 0) {
    for (uint32_t position = 0; position < manifest.system_tokens; ++position) {
      rows.push_back({position, std::numeric_limits<float>::infinity()});
    }
  }
  const uint64_t first =
      (uint64_t{layer} * manifest.geometry.kv_heads + head) * manifest.context_tokens;
  for (uint64_t i = 0; i < manifest.context_tokens; ++i) {
    const uint64_t rank = ranking.rank[first + i];
    if (edges.BandOfRank(rank, ranking.pairs) != band) continue;
    rows.push_back(
        {static_cast<uint32_t>(manifest.system_tokens + i), LogScore(rank, ranking.pairs)});
  }
  return rows;
}

SegmentBuilder::Sealed MakeSegment(const Geometry& geometry,
                                   const std::vector<std::vector<Row>>& heads,
                                   std::mt19937_64& random) {
  std::vector<uint32_t> counts;
  for (const std::vector<Row>& rows : heads) counts.push_back(static_cast<uint32_t>(rows.size()));
  absl::StatusOr<SegmentBuilder> builder = SegmentBuilder::Create(geometry, counts);
  KVTIER_CHECK_OK(builder);
  for (uint32_t head = 0; head < heads.size(); ++head) {
    const HeadRowsMut out = builder->head(head);
    for (size_t row = 0; row < heads[head].size(); ++row) {
      out.positions[row] = heads[head][row].position;
      out.log_scores[row] = float16(heads[head][row].log_score);
    }
    const size_t bytes = heads[head].size() * geometry.row_bytes();
    for (size_t i = 0; i < bytes; ++i) out.keys[i] = static_cast<std::byte>(random());
    for (size_t i = 0; i < bytes; ++i) out.values[i] = static_cast<std::byte>(random());
  }
  return std::move(*builder).Seal();
}

// The window of one head of a sliding layer: the last positions, in band 0.
std::vector<Row> WindowOf(const Manifest& manifest, BandIndex band) {
  constexpr uint32_t kWindow = 8;
  std::vector<Row> rows;
  const uint32_t end = manifest.system_tokens + manifest.context_tokens;
  for (uint32_t position = end - std::min(end, kWindow); band.value() == 0 && position < end;
       ++position) {
    rows.push_back({position, std::numeric_limits<float>::infinity()});
  }
  return rows;
}

// Threshold and score mass of a band, from the ranks it holds.
void Summarise(const BandEdges& edges, uint64_t pairs, BandIndex band, BandEntry* entry) {
  const uint64_t begin = band.value() == 0 ? 0 : edges.edge(BandIndex(band.value() - 1)).Of(pairs);
  const uint64_t end = edges.edge(band).Of(pairs);
  entry->edge = edges.edge(band);
  entry->threshold =
      begin == end ? std::numeric_limits<float>::infinity() : LogScore(end - 1, pairs);
  for (uint64_t rank = begin; rank < end; ++rank) {
    entry->score_mass += std::exp(static_cast<double>(LogScore(rank, pairs)));
  }
}

}  // namespace

CompressedObject MakeTestObject(const TestObjectOptions& options) {
  const absl::StatusOr<BandEdges> edges = BandEdges::Parse(options.edges);
  KVTIER_CHECK_OK(edges);
  auto manifest = std::make_shared<Manifest>();
  manifest->key = options.key.IsZero() ? MakeId<Key>(options.seed, 1) : options.key;
  manifest->last_block_hash = options.last_block_hash;
  manifest->upload_id = MakeId<UploadId>(options.seed, 2 + options.upload_seed);
  manifest->model_name = "test-model";
  manifest->model_digest = MakeId<Digest>(7, 7);
  manifest->recipe = "kvzip/1";
  manifest->prompt_profile_digest = MakeId<Digest>(8, 8);
  manifest->geometry = Geometry{
      .kv_heads = options.kv_heads,
      .head_dim = options.head_dim,
      .dtype = DType::kBf16,
      .layers = std::vector<LayerKind>(options.layers, LayerKind::kGlobal),
  };
  std::fill_n(manifest->geometry.layers.begin(), options.sliding_layers, LayerKind::kSliding);
  manifest->system_tokens = options.system_tokens;
  manifest->context_tokens = options.context_tokens;

  std::mt19937_64 random(options.seed * 1'000'003 + options.upload_seed);
  const Ranking ranking = MakeRanking(*manifest, random);
  CompressedObject object;
  for (uint32_t b = 0; b < edges->size(); ++b) {
    const BandIndex band(b);
    BandEntry entry;
    Summarise(*edges, ranking.pairs, band, &entry);
    for (uint32_t layer = 0; layer < options.layers; ++layer) {
      std::vector<std::vector<Row>> heads;
      for (uint32_t head = 0; head < options.kv_heads; ++head) {
        heads.push_back(
            layer < options.sliding_layers
                ? WindowOf(*manifest, band)
                : RowsOf(*manifest, *edges, ranking, band, layer - options.sliding_layers, head));
      }
      SegmentBuilder::Sealed sealed = MakeSegment(manifest->geometry, heads, random);
      entry.layers.push_back(std::move(sealed.entry));
      object.segments.push_back(SegmentRef::Own(std::move(sealed.bytes)));
    }
    manifest->bands.push_back(std::move(entry));
  }
  KVTIER_CHECK_OK(manifest->Validate());
  object.manifest = std::move(manifest);
  return object;
}

CompressedObject WithWrongPosition(const CompressedObject& object, BandIndex band,
                                   LayerIndex layer) {
  auto manifest = std::make_shared<Manifest>(*object.manifest);
  SegmentEntry& entry = manifest->bands[band.value()].layers[layer.value()];
  const ByteSpan from = object.segment(band, layer).bytes();
  AlignedBytes bytes = AlignedBytes::Allocate(from.size());
  std::ranges::copy(from, bytes.data());
  uint64_t offset = 0;
  for (HeadEntry& head : entry.heads) {
    if (head.rows > 0) {  // Positions come first in a block.
      const uint64_t end = manifest->logical_length();
      const uint32_t wrong = static_cast<uint32_t>(end);
      std::memcpy(bytes.data() + offset, &wrong, sizeof(wrong));
      head.crc32c = ComputeCrc32c(bytes.span().subspan(offset, head.encoded_bytes));
      break;
    }
    offset += head.encoded_bytes;
  }
  KVTIER_CHECK_OK(manifest->Validate());
  CompressedObject wrong = object;
  wrong.segments[band.value() * manifest->geometry.layer_count() + layer.value()] =
      SegmentRef::Own(std::move(bytes));
  wrong.manifest = std::move(manifest);
  return wrong;
}

std::vector<std::byte> ConcatenateSegments(const CompressedObject& object) {
  std::vector<std::byte> bytes;
  for (const SegmentRef& segment : object.segments) {
    bytes.insert(bytes.end(), segment.bytes().begin(), segment.bytes().end());
  }
  return bytes;
}

}  // namespace kvtier
