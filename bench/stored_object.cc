#include "bench/stored_object.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "base/status_macros.h"
#include "kvcache/segment.h"

namespace kvtier::bench {
namespace {

Key KeyOf(uint64_t seed) {
  std::array<std::byte, Key::kSize> bytes{};
  bytes[0] = std::byte{1};  // Never all zero.
  std::memcpy(bytes.data() + 1, &seed, sizeof(seed));
  return Key(bytes);
}

// Not good numbers, but fast ones that no two segments share (xorshift64*).
class Words {
 public:
  explicit Words(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15 + 1) {}
  void Fill(std::byte* to, uint64_t bytes) {
    for (; bytes >= 8; bytes -= 8, to += 8) {
      state_ ^= state_ >> 12;
      state_ ^= state_ << 25;
      state_ ^= state_ >> 27;
      std::memcpy(to, &state_, 8);
    }
    std::memset(to, 0x5A, bytes);
  }

 private:
  uint64_t state_;
};

// `rows` over all (layer, head): even ones get a quarter more than odd ones, and what does not
// divide goes to the first ones. [layers * heads]
std::vector<uint32_t> RaggedCounts(uint64_t rows, size_t heads) {
  std::vector<uint32_t> counts(heads, static_cast<uint32_t>(rows / heads));
  for (size_t i = 0; i + 1 < heads; i += 2) {
    const uint32_t moved = counts[i] / 4;
    counts[i] += moved;
    counts[i + 1] -= moved;
  }
  for (size_t i = 0; i < rows % heads; ++i) ++counts[heads - 1 - i];
  return counts;
}

}  // namespace

ObjectShape FlatShape(uint64_t bytes, uint64_t segment_bytes) {
  ObjectShape shape;
  shape.layers = static_cast<uint32_t>(std::max<uint64_t>(1, bytes / segment_bytes));
  const uint64_t row_bytes = 2 * shape.head_dim * 2 + 6;  // Key, value; position, score.
  shape.tokens =
      static_cast<uint32_t>(std::max<uint64_t>(1, segment_bytes / (shape.kv_heads * row_bytes)));
  return shape;
}

absl::StatusOr<CompressedObject> MakeStoredObject(const ObjectShape& shape, uint64_t seed) {
  auto manifest = std::make_shared<Manifest>();
  manifest->key = KeyOf(seed);
  manifest->upload_id = MakeUploadId();
  manifest->model_name = "bench";
  manifest->recipe = "kvzip/1";
  manifest->geometry = {.kv_heads = shape.kv_heads,
                        .head_dim = shape.head_dim,
                        .dtype = DType::kBf16,
                        .layers = std::vector<LayerKind>(shape.layers, LayerKind::kGlobal)};
  manifest->context_tokens = shape.tokens;
  const size_t heads = size_t{shape.layers} * shape.kv_heads;
  std::vector<uint32_t> next_position(heads, 0);
  CompressedObject object;
  Words words(seed);
  uint64_t ranked = 0;
  for (const double edge : shape.edges) {
    BandEntry band;
    KVTIER_ASSIGN_OR_RETURN(band.edge, Ratio::FromDouble(edge));
    const uint64_t rank_end = manifest->RankEnd(band.edge);
    std::vector<uint32_t> counts(heads, shape.tokens);
    if (band.edge < Ratio()) {
      counts = RaggedCounts(rank_end - ranked, heads);
    } else {  // What is left of each head.
      for (size_t i = 0; i < heads; ++i) counts[i] -= next_position[i];
    }
    // Falling scores: the higher a band, the less of the mass it brings.
    band.threshold = -static_cast<float>(manifest->bands.size());
    band.score_mass = static_cast<double>(rank_end - ranked) / (1.0 + 100 * edge * edge);
    ranked = rank_end;
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      const std::span<const uint32_t> rows =
          std::span(counts).subspan(size_t{layer} * shape.kv_heads, shape.kv_heads);
      KVTIER_ASSIGN_OR_RETURN(SegmentBuilder builder,
                              SegmentBuilder::Create(manifest->geometry, rows));
      for (uint32_t head = 0; head < shape.kv_heads; ++head) {
        const HeadRowsMut out = builder.head(head);
        uint32_t& position = next_position[size_t{layer} * shape.kv_heads + head];
        for (uint32_t& at : out.positions) at = position++;
        words.Fill(out.keys, uint64_t{rows[head]} * shape.head_dim * 2);
        words.Fill(out.values, uint64_t{rows[head]} * shape.head_dim * 2);
      }
      SegmentBuilder::Sealed sealed = std::move(builder).Seal();
      band.layers.push_back(std::move(sealed.entry));
      object.segments.push_back(SegmentRef::Own(std::move(sealed.bytes)));
    }
    manifest->bands.push_back(std::move(band));
  }
  KVTIER_RETURN_IF_ERROR(manifest->Validate());
  object.manifest = std::move(manifest);
  return object;
}

CompressedObject Renamed(const CompressedObject& object, uint64_t seed) {
  auto manifest = std::make_shared<Manifest>(*object.manifest);
  manifest->key = KeyOf(seed);
  manifest->upload_id = MakeUploadId();
  CompressedObject renamed;
  renamed.manifest = std::move(manifest);
  renamed.segments = object.segments;
  return renamed;
}

absl::Status KeepingSink::OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t) {
  manifest_ = std::move(manifest);
  return absl::OkStatus();
}

absl::Status KeepingSink::OnSegment(BandIndex, LayerIndex, SegmentRef bytes) {
  bytes_ += bytes.bytes().size();
  segments_.push_back(std::move(bytes));
  return absl::OkStatus();
}

void KeepingSink::Clear() {
  manifest_.reset();
  segments_.clear();
  bytes_ = 0;
}

}  // namespace kvtier::bench
