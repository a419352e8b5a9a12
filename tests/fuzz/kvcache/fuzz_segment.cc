// Any bytes as a segment of a manifest that the first bytes describe: every reader refuses them or
// stays inside them.
//
// Input: u8 flags, heads-1, head_dim-1, system tokens, context tokens-1, then one u8 per head (its
// ranked rows in band 0), for lossy codecs one more u8 per head of each band (size of its position
// code), then the segment. Flags: bit 0 sliding layer, bits 1-2 dtype, bit 3 take the segment's
// size as it is (else cut or zero-filled to the right one), bit 4 leave checksums 0, bits 5-6
// codec.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/bytes.h"
#include "base/log.h"
#include "kvcache/position_code.h"
#include "kvcache/ragged_view.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

struct Input {
  uint8_t flags = 0;
  uint32_t heads = 1;
  std::vector<uint32_t> ranked;  // [heads]
  ByteSpan segment;
};

constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kInt8, CodecId::kInt4, CodecId::kRaw};

// A size that so many rows can have.
uint64_t BlockBytes(ByteReader& reader, const Geometry& geometry, CodecId codec, uint32_t rows) {
  uint64_t position_bytes = rows * kPositionCodeBytesMin;
  if (codec != CodecId::kRaw) position_bytes += reader.ReadU8().value_or(0) % (2 * rows + 1);
  return LayOutHeadBlock(geometry, codec, rows, position_bytes).bytes;
}

void AddBand(ByteReader& reader, CodecId codec, Manifest& m, Ratio edge,
             const std::vector<uint32_t>& rows, bool ranks) {
  BandEntry& band = m.bands.emplace_back();
  band.edge = edge;
  band.threshold = ranks ? -1.0f : std::numeric_limits<float>::infinity();
  SegmentEntry& entry = band.layers.emplace_back();
  entry.codec = codec;
  for (uint32_t head_rows : rows) {
    entry.heads.push_back({head_rows, BlockBytes(reader, m.geometry, codec, head_rows), Crc32c()});
  }
}

// A valid manifest of one layer whose band 0 has the rows that the input asks for.
Manifest Describe(ByteReader& reader, Input& input) {
  const auto next = [&reader] { return reader.ReadU8().value_or(0); };
  Manifest m;
  input.flags = next();
  m.key = Key::FromHex(std::string(64, '1')).value();
  m.upload_id = UploadId::FromHex(std::string(32, '2')).value();
  const bool sliding = (input.flags & 1) != 0;
  const CodecId codec = kCodecs[(input.flags >> 5) & 3];
  m.recipe = absl::StrCat("kvzip/1", codec == CodecId::kRaw ? "" : ";codec=",
                          codec == CodecId::kRaw ? "" : CodecName(codec));
  m.geometry.layers = {sliding ? LayerKind::kSliding : LayerKind::kGlobal};
  m.geometry.dtype = static_cast<DType>(1 + ((input.flags >> 1) & 3) % 3);
  m.geometry.kv_heads = 1 + next() % 8;
  m.geometry.head_dim = 1 + next() % 16;  // Small, so that many inputs run in a second.
  m.system_tokens = next() % 32;
  m.context_tokens = 1 + next() % 32;
  uint64_t ranked = 0;
  std::vector<uint32_t> low;
  std::vector<uint32_t> high;
  for (uint32_t head = 0; head < m.geometry.kv_heads; ++head) {
    const uint64_t rows = next() % (m.context_tokens + 1);
    ranked += rows;
    low.push_back(static_cast<uint32_t>(m.system_tokens + rows));
    high.push_back(static_cast<uint32_t>(m.context_tokens - rows));
  }
  if (sliding) {
    AddBand(reader, codec, m, Ratio(), std::vector<uint32_t>(m.geometry.kv_heads, low[0]), false);
    return m;
  }
  const uint64_t pairs = m.scored_pairs();
  if (ranked == 0 || ranked == pairs) {
    AddBand(reader, codec, m, Ratio(),
            std::vector<uint32_t>(m.geometry.kv_heads, m.logical_length()), true);
    return m;
  }
  // The smallest edge whose floor is `ranked`.
  const uint64_t edge = (ranked * Ratio::kOne + pairs - 1) / pairs;
  AddBand(reader, codec, m, Ratio::FromMillionths(static_cast<uint32_t>(edge)).value(), low, true);
  AddBand(reader, codec, m, Ratio(), high, true);
  return m;
}

void ReadEverything(const Manifest& m, const SegmentEntry& entry, ByteSpan segment) {
  const HeadRange all{0, m.geometry.kv_heads};
  const bool right_size = entry.encoded_bytes() == segment.size();
  uint64_t sum = 0;
  for (uint32_t head = 0; head < m.geometry.kv_heads; ++head) {
    const absl::StatusOr<HeadRows> rows = ReadHead(m.geometry, entry, all, segment, head);
    KVTIER_CHECK_EQ(rows.ok(), right_size);
    if (!rows.ok()) continue;
    const absl::StatusOr<std::vector<uint32_t>> positions = ReadPositions(*rows);
    if (positions.ok()) {
      for (uint32_t position : *positions) sum += position;
    }
    const auto add = [&sum](const std::byte* bytes, uint64_t count) {
      for (uint64_t i = 0; i < count; ++i) sum += std::to_integer<uint64_t>(bytes[i]);
    };
    for (const std::byte* codes : {rows->keys, rows->values}) {
      add(codes, rows->rows * EncodedRowBytes(m.geometry, entry.codec));
    }
    for (const std::byte* scales : {rows->key_scales, rows->value_scales}) {
      add(scales, rows->rows * EncodedScaleBytes(entry.codec));
    }
  }
  // Keeps the reads: a sanitizer sees them, the optimiser must not drop them.
  [[maybe_unused]] static volatile uint64_t sink = 0;
  sink = sum;
}

}  // namespace
}  // namespace kvtier

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvtier;  // NOLINT(google-build-using-namespace): a fuzz target has one function
  ByteReader reader(AsBytes(std::span(data, size)));
  Input input;
  Manifest m = Describe(reader, input);
  KVTIER_CHECK_OK(m.Validate());
  SegmentEntry& entry = m.bands[0].layers[0];
  const ByteSpan rest = reader.ReadBytes(reader.remaining()).value();
  const bool keep_size = (input.flags & 8) != 0;
  AlignedBytes segment = AlignedBytes::Allocate(keep_size ? rest.size() : entry.encoded_bytes());
  std::copy_n(rest.begin(), std::min(rest.size(), segment.size()), segment.span().begin());
  const bool right_size = segment.size() == entry.encoded_bytes();
  if ((input.flags & 16) == 0 && right_size) {
    uint64_t at = 0;
    for (HeadEntry& head : entry.heads) {
      head.crc32c = ComputeCrc32c(segment.span().subspan(at, head.encoded_bytes));
      at += head.encoded_bytes;
    }
  }
  const HeadRange all{0, m.geometry.kv_heads};
  ReadEverything(m, entry, segment.span());
  const bool intact = VerifySegment(entry, all, segment.span()).ok();
  KVTIER_CHECK(right_size || !intact);
  const absl::Status content = VerifySegmentContent(m, BandIndex(0), LayerIndex(0), segment.span());
  KVTIER_CHECK(content.ok() ? intact : content.code() == absl::StatusCode::kDataLoss) << content;
  const auto cache = RaggedCache::Create(std::make_shared<const Manifest>(m), 1, all,
                                         {SegmentRef::Own(std::move(segment))});
  KVTIER_CHECK_EQ(cache.ok(), right_size);
  return 0;
}
