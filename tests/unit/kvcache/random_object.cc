#include "tests/unit/kvcache/random_object.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/half.h"
#include "base/log.h"
#include "kvcache/recipe.h"
#include "kvcache/segment.h"
#include "kvcache/token_block_hash.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Pair {
  uint32_t layer;
  uint32_t head;
  uint32_t position;
  float log_score;
  bool forced;
};

struct Row {
  uint32_t position;
  float log_score;
};

// [bands][layers][heads] rows.
using Rows = std::vector<std::vector<std::vector<std::vector<Row>>>>;

template <typename Id>
Id RandomId(std::mt19937_64& random) {
  return Id::FromBytes(RandomBytes(random, Id::kSize)).value();
}

// Best first; for the rule kPerHead head by head, best first in each.
std::vector<Pair> RankPairs(const ObjectShape& shape, SelectionRule rule, std::mt19937_64& random) {
  std::vector<Pair> pairs;
  std::uniform_real_distribution<float> log_score(-12, 0);
  const uint64_t length = shape.system_tokens + shape.context_tokens;
  const uint64_t ranked = RankedTokens(rule, shape.system_tokens, shape.context_tokens);
  for (uint32_t layer = 0; layer < shape.geometry.layer_count(); ++layer) {
    if (shape.geometry.layers[layer] != LayerKind::kGlobal) continue;
    for (uint32_t head = 0; head < shape.geometry.kv_heads; ++head) {
      const float head_score = log_score(random);
      for (uint64_t position = length - ranked; position < length; ++position) {
        const float score = rule == SelectionRule::kWholeHeads ? head_score : log_score(random);
        pairs.push_back({layer, head, static_cast<uint32_t>(position), score,
                         position == 0 && PutsFirstTokenFirst(rule)});
      }
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(), [rule](const Pair& a, const Pair& b) {
    if (rule == SelectionRule::kPerHead && (a.layer != b.layer || a.head != b.head)) {
      return std::pair(a.layer, a.head) < std::pair(b.layer, b.head);
    }
    return a.forced != b.forced ? a.forced : a.log_score > b.log_score;
  });
  return pairs;
}

uint32_t BandOf(const BandEdges& edges, SelectionRule rule, uint64_t rank, uint64_t heads,
                uint64_t tokens) {
  uint32_t band = 0;
  if (rule == SelectionRule::kPerHead) {
    rank %= tokens;
    heads = 1;
  }
  while (rank >= KeptPairs(rule, edges.edge(BandIndex(band)), heads, tokens)) ++band;
  return band;
}

void AddUnrankedRows(const ObjectShape& shape, SelectionRule rule, Rows& rows) {
  const uint64_t length = shape.system_tokens + shape.context_tokens;
  for (uint32_t layer = 0; layer < shape.geometry.layer_count(); ++layer) {
    const bool scored = shape.geometry.layers[layer] == LayerKind::kGlobal;
    const uint64_t begin = scored ? 0 : length - std::min<uint64_t>(length, shape.window);
    const uint64_t ranked = RankedTokens(rule, shape.system_tokens, shape.context_tokens);
    const uint64_t end = scored ? length - ranked : length;
    for (auto& head : rows[0][layer]) {
      for (uint64_t p = begin; p < end; ++p) {
        head.push_back({static_cast<uint32_t>(p), kInfinity});
      }
    }
  }
}

// `rows` rows of the geometry's dtype: any bits for kRaw, finite numbers for the lossy codecs.
std::vector<std::byte> RandomRows(const Geometry& geometry, CodecId codec, size_t rows,
                                  std::mt19937_64& random) {
  if (codec == CodecId::kRaw) return RandomBytes(random, rows * geometry.row_bytes());
  std::normal_distribution<float> normal;
  std::vector<std::byte> bytes;
  ByteWriter writer(&bytes);
  for (size_t i = 0; i < rows * geometry.head_dim; ++i) {
    const float x = normal(random);
    if (geometry.dtype == DType::kF32) writer.WriteF32(x);
    if (geometry.dtype == DType::kF16) writer.WriteU16(float16(x).bits);
    if (geometry.dtype == DType::kBf16) writer.WriteU16(bfloat16(x).bits);
  }
  return bytes;
}

SegmentBuilder::Sealed BuildSegment(const Geometry& geometry, CodecId codec,
                                    const std::vector<std::vector<Row>>& heads,
                                    std::mt19937_64& random) {
  std::vector<uint32_t> counts;
  for (const auto& head : heads) counts.push_back(static_cast<uint32_t>(head.size()));
  SegmentBuilder builder = SegmentBuilder::Create(geometry, codec, counts).value();
  for (uint32_t head = 0; head < heads.size(); ++head) {
    if (heads[head].empty()) continue;
    const HeadRowsMut out = builder.head(head);
    for (size_t i = 0; i < heads[head].size(); ++i) {
      out.positions[i] = heads[head][i].position;
      out.log_scores[i] = float16(heads[head][i].log_score);
    }
    const std::vector<std::byte> keys = RandomRows(geometry, codec, heads[head].size(), random);
    const std::vector<std::byte> values = RandomRows(geometry, codec, heads[head].size(), random);
    KVTIER_CHECK_OK(EncodeHeadRows(geometry, codec, counts[head], keys.data(), values.data(), out));
  }
  return std::move(builder).Seal();
}

}  // namespace

ObjectShape TinyShape() {
  ObjectShape shape;
  shape.geometry.kv_heads = 2;
  shape.geometry.head_dim = 4;
  shape.geometry.dtype = DType::kBf16;
  shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kGlobal};
  shape.system_tokens = 1;
  shape.context_tokens = 5;
  shape.edges = BandEdges::Parse("0.4,1").value();
  return shape;
}

CompressedObject MakeRandomObject(const ObjectShape& shape) {
  std::mt19937_64 random(shape.seed);
  Manifest manifest;
  manifest.key = RandomId<Key>(random);
  manifest.upload_id = RandomId<UploadId>(random);
  manifest.model_name = "random";
  manifest.model_digest = RandomId<Digest>(random);
  manifest.recipe = shape.recipe;
  manifest.prompt_profile_digest = RandomId<Digest>(random);
  manifest.geometry = shape.geometry;
  manifest.system_tokens = shape.system_tokens;
  manifest.context_tokens = shape.context_tokens;
  if (shape.context_tokens >= kTokenBlockTokens) {
    manifest.last_block_hash = RandomId<TokenBlockHash>(random);
  }

  const uint32_t layers = shape.geometry.layer_count();
  Rows rows(shape.edges.size(), {layers, std::vector<std::vector<Row>>(shape.geometry.kv_heads)});
  const SelectionRule rule = manifest.selection();
  AddUnrankedRows(shape, rule, rows);
  const std::vector<Pair> pairs = RankPairs(shape, rule, random);
  const uint64_t heads = uint64_t{shape.geometry.scored_layer_count()} * shape.geometry.kv_heads;
  manifest.bands.resize(shape.edges.size());
  for (uint32_t b = 0; b < shape.edges.size(); ++b) {
    manifest.bands[b].edge = shape.edges.edge(BandIndex(b));
    manifest.bands[b].threshold = kInfinity;
  }
  for (uint64_t rank = 0; rank < pairs.size(); ++rank) {
    const Pair& pair = pairs[rank];
    const uint32_t b = BandOf(shape.edges, rule, rank, heads, manifest.ranked_tokens());
    float& threshold = manifest.bands[b].threshold;
    // The last of a band; where heads rank apart, the lowest of their last ones.
    const bool last_of_head =
        rule != SelectionRule::kPerHead || rank + 1 == pairs.size() ||
        b != BandOf(shape.edges, rule, rank + 1, heads, manifest.ranked_tokens());
    if (last_of_head) {
      threshold =
          rule == SelectionRule::kPerHead ? std::min(threshold, pair.log_score) : pair.log_score;
    }
    manifest.bands[b].score_mass += std::exp(double{pair.log_score});
    rows[b][pair.layer][pair.head].push_back({pair.position, pair.log_score});
  }

  CompressedObject object;
  for (uint32_t b = 0; b < shape.edges.size(); ++b) {
    for (uint32_t layer = 0; layer < layers; ++layer) {
      for (std::vector<Row>& head : rows[b][layer]) {
        std::sort(head.begin(), head.end(),
                  [](const Row& x, const Row& y) { return x.position < y.position; });
      }
      SegmentBuilder::Sealed sealed =
          BuildSegment(shape.geometry, CodecOfRecipe(shape.recipe), rows[b][layer], random);
      manifest.bands[b].layers.push_back(std::move(sealed.entry));
      object.segments.push_back(SegmentRef::Own(std::move(sealed.bytes)));
    }
  }
  KVTIER_CHECK_OK(manifest.Validate());
  object.manifest = std::make_shared<const Manifest>(std::move(manifest));
  return object;
}

}  // namespace kvtier
