#include "kvcache/manifest.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvcache/recipe.h"
#include "kvcache/segment_layout.h"
#include "kvcache/token_block_hash.h"

namespace kvtier {
namespace {

constexpr absl::string_view kMagic = "KVTMANIF";

// The envelope is the same in every version: magic, version, length, ..., CRC32C.
constexpr uint64_t kEnvelopeBytes = 8 + 4 + 8 + 4;
constexpr uint64_t kLengthOffset = 8 + 4;
constexpr uint64_t kCrcBytes = 4;

constexpr uint64_t kHeadEntryBytes = 4 + 8 + 4;
constexpr uint64_t kBandHeaderBytes = 4 + 4 + 8;
constexpr uint64_t kSegmentHeaderBytes = 1;

// Stands for a band at which Fidelity was not measured.
constexpr uint64_t kNotMeasured = ~uint64_t{0};

// Everything between the envelope's start and the bands.
uint64_t HeaderBytes(const Manifest& m) {
  return Key::kSize + UploadId::kSize + 3 * Digest::kSize + 8 + 8 + (4 + m.model_name.size()) +
         (4 + m.recipe.size()) + (4 + 4 + 1 + 4 + m.geometry.layers.size()) + 4;
}

// No overflow: the factors are bounded by limits.h or by the bytes of a manifest.
uint64_t BandsBytes(uint64_t bands, uint64_t layers, uint64_t kv_heads) {
  return bands * (kBandHeaderBytes + layers * (kSegmentHeaderBytes + kv_heads * kHeadEntryBytes));
}

// The oldest version whose grammar can say all of `m`: its readers understand every field, if also
// the codec and the recipe that `m` names.
uint32_t VersionOf(const Manifest& m) {
  const bool whole = m.bands.empty() || m.bands.back().edge == Ratio();
  return whole && !m.fidelity.has_value() ? 1 : 2;
}

uint64_t FidelityBytes(uint64_t bands) { return 4 + 8 + 8 * bands; }

uint64_t EncodedManifestBytes(const Manifest& m) {
  const uint64_t bands = m.bands.size();
  uint64_t bytes = kEnvelopeBytes + HeaderBytes(m) +
                   BandsBytes(bands, m.geometry.layers.size(), m.geometry.kv_heads);
  if (VersionOf(m) >= 2) bytes += 1 + (m.fidelity.has_value() ? FidelityBytes(bands) : 0);
  return bytes;
}

template <typename... Parts>
absl::Status Refuse(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("manifest: ", parts...));
}

absl::Status CheckAtMost(absl::string_view field, uint64_t value, absl::string_view limit_name,
                         uint64_t limit) {
  if (value <= limit) return absl::OkStatus();
  return Refuse(field, " is ", value, ", at most ", limit_name, " = ", limit);
}

// Everything but the bands.
absl::Status CheckHeader(const Manifest& m) {
  if (m.key.IsZero()) return Refuse("key is all zero");
  if (m.upload_id.IsZero()) return Refuse("upload_id is all zero");
  KVTIER_RETURN_IF_ERROR(CheckAtMost("model_name: byte count", m.model_name.size(), "kNameBytesMax",
                                     limits::kNameBytesMax));
  KVTIER_RETURN_IF_ERROR(
      CheckAtMost("recipe: byte count", m.recipe.size(), "kNameBytesMax", limits::kNameBytesMax));
  KVTIER_RETURN_IF_ERROR(m.geometry.Validate());
  KVTIER_RETURN_IF_ERROR(
      CheckAtMost("system_tokens", m.system_tokens, "kSystemTokensMax", limits::kSystemTokensMax));
  KVTIER_RETURN_IF_ERROR(CheckAtMost("context_tokens", m.context_tokens, "kContextTokensMax",
                                     limits::kContextTokensMax));
  if (m.logical_length() == 0) return Refuse("no tokens");
  if (m.context_tokens < kTokenBlockTokens && !m.last_block_hash.IsZero()) {
    return Refuse("last_block_hash is set, but the context has no full block");
  }
  return absl::OkStatus();
}

// Shapes and sizes of one segment's entries, and that they follow from the row counts.
absl::Status CheckSegmentEntry(const Manifest& m, CodecId codec, BandIndex band, LayerIndex layer) {
  const SegmentEntry& entry = m.segment(band, layer);
  const auto where = [&] { return absl::StrCat("band ", band.value(), " layer ", layer.value()); };
  if (entry.codec != codec) {
    if (!IsKnownCodec(entry.codec)) {
      return Refuse(where(), ": unknown codec ", static_cast<int>(entry.codec));
    }
    return Refuse(where(), ": codec ", CodecName(entry.codec), ", the recipe \"", m.recipe,
                  "\" says ", CodecName(codec));
  }
  if (entry.heads.size() != m.geometry.kv_heads) {
    return Refuse(where(), ": ", entry.heads.size(), " heads, the geometry has ",
                  m.geometry.kv_heads);
  }
  uint64_t bytes = 0;  // At most kKvHeadsMax times what a head of so many rows can have.
  for (size_t head = 0; head < entry.heads.size(); ++head) {
    const HeadEntry& h = entry.heads[head];
    if (h.rows > m.logical_length()) {
      return Refuse(where(), " head ", head, ": rows is ", h.rows, ", the object has ",
                    m.logical_length(), " tokens");
    }
    const absl::Status fits =
        LayOutStoredBlock(m.geometry, entry.codec, h.rows, h.encoded_bytes).status();
    if (!fits.ok()) return Refuse(where(), " head ", head, ": ", fits.message());
    if (h.rows == 0 && h.crc32c != Crc32c()) {
      return Refuse(where(), " head ", head, ": no rows, but a checksum");
    }
    bytes += h.encoded_bytes;
  }
  return CheckAtMost(where() + ": encoded bytes", bytes, "kSegmentBytesMax",
                     limits::kSegmentBytesMax);
}

// Every (scored layer, head) keeps each of its positions in exactly one band; in an object that
// ends below ratio 1, in at most one.
absl::Status CheckScoredLayer(const Manifest& m, LayerIndex layer) {
  const uint64_t protected_tokens = m.protected_tokens();
  for (uint32_t head = 0; head < m.geometry.kv_heads; ++head) {
    const uint32_t first_rows = m.segment(BandIndex(0), layer).heads[head].rows;
    if (first_rows < protected_tokens) {
      return Refuse("band 0 layer ", layer.value(), " head ", head, ": rows is ", first_rows,
                    ", less than the ", protected_tokens, " protected ones");
    }
    uint64_t rows = 0;
    for (const BandEntry& band : m.bands) rows += band.layers[layer.value()].heads[head].rows;
    const bool whole = m.bands.back().edge == Ratio();
    if (whole ? rows != m.logical_length() : rows > m.logical_length()) {
      return Refuse("layer ", layer.value(), " head ", head, ": rows of all bands are ", rows,
                    ", the object has ", m.logical_length(), " tokens");
    }
  }
  return absl::OkStatus();
}

// A sliding layer keeps one window, the same for all heads, in band 0.
absl::Status CheckSlidingLayer(const Manifest& m, LayerIndex layer) {
  const std::vector<HeadEntry>& first = m.segment(BandIndex(0), layer).heads;
  for (const HeadEntry& head : first) {
    if (head.rows != first[0].rows) {
      return Refuse("sliding layer ", layer.value(), ": heads differ in their window");
    }
  }
  for (uint32_t band = 1; band < m.bands.size(); ++band) {
    if (m.segment(BandIndex(band), layer).rows() != 0) {
      return Refuse("band ", band, " layer ", layer.value(), ": a sliding layer has rows here");
    }
  }
  return absl::OkStatus();
}

// How many pairs the bands rank, by the recipe's rule.
class RankCounts {
 public:
  explicit RankCounts(const Manifest& m)
      : manifest_(m),
        rule_(m.selection()),
        heads_(uint64_t{m.geometry.scored_layer_count()} * m.geometry.kv_heads),
        tokens_(m.ranked_tokens()),
        protected_tokens_(m.protected_tokens()) {}

  SelectionRule rule() const { return rule_; }
  uint64_t heads() const { return heads_; }
  uint64_t tokens() const { return tokens_; }
  // Pairs of bands 0..band, and of bands 0..band-1.
  uint64_t End(uint32_t band) const {
    return KeptPairs(rule_, manifest_.bands[band].edge, heads_, tokens_,
                     manifest_.geometry.kv_heads);
  }
  uint64_t Begin(uint32_t band) const { return band == 0 ? 0 : End(band - 1); }
  // What a head of a scored layer ranks in a band. REQUIRES: CheckScoredLayer.
  uint64_t RankedRows(uint32_t band, uint32_t layer, uint32_t head) const {
    return manifest_.bands[band].layers[layer].heads[head].rows -
           (band == 0 ? protected_tokens_ : 0);
  }

 private:
  const Manifest& manifest_;
  const SelectionRule rule_;
  const uint64_t heads_;
  const uint64_t tokens_;
  const uint64_t protected_tokens_;
};

// What the rule demands of one head in one band.
absl::Status CheckHeadCount(const RankCounts& counts, uint32_t band, uint32_t layer, uint32_t head,
                            uint64_t ranked) {
  switch (counts.rule()) {
    case SelectionRule::kExact:
    case SelectionRule::kKvpress:
      return absl::OkStatus();  // Only the sum over the heads is given.
    case SelectionRule::kPerHead: {
      const uint64_t expected = (counts.End(band) - counts.Begin(band)) / counts.heads();
      if (ranked == expected) return absl::OkStatus();
      return Refuse("band ", band, " layer ", layer, " head ", head, ": ranks ", ranked,
                    " rows, every head has ", expected);
    }
    case SelectionRule::kPerLayer: {
      const uint64_t first = counts.RankedRows(band, layer, 0);
      if (ranked == first) return absl::OkStatus();
      return Refuse("band ", band, " layer ", layer, " head ", head, ": ranks ", ranked,
                    " rows, every head of the layer has ", first);
    }
    case SelectionRule::kWholeHeads:
      if (ranked == 0 || ranked == counts.tokens()) return absl::OkStatus();
      return Refuse("band ", band, " layer ", layer, " head ", head, ": ranks ", ranked,
                    " rows, a whole head has ", counts.tokens());
  }
  return Refuse("selection rule ", static_cast<int>(counts.rule()));
}

// Band b ranks exactly k(b) - k(b-1) pairs.
absl::Status CheckRankedRows(const Manifest& m, const RankCounts& counts, uint32_t band) {
  const uint64_t expected = counts.End(band) - counts.Begin(band);
  uint64_t ranked = 0;
  for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
    if (m.geometry.layers[layer] != LayerKind::kGlobal) continue;
    for (uint32_t head = 0; head < m.geometry.kv_heads; ++head) {
      const uint64_t rows = counts.RankedRows(band, layer, head);
      KVTIER_RETURN_IF_ERROR(CheckHeadCount(counts, band, layer, head, rows));
      ranked += rows;
    }
  }
  if (ranked != expected) {
    return Refuse("band ", band, ": ranks ", ranked, " pairs, its edges ask for ", expected);
  }
  return absl::OkStatus();
}

// Thresholds fall from band to band. With no system prompt the first token of each scored head
// ranks ahead of its score, so a band of nothing else has no place in that order.
absl::Status CheckThresholds(const Manifest& m, const RankCounts& counts) {
  const bool first_token_first = m.system_tokens == 0 && PutsFirstTokenFirst(counts.rule());
  const uint64_t forced = first_token_first ? counts.heads() : 0;
  float previous = std::numeric_limits<float>::infinity();
  for (uint32_t b = 0; b < m.bands.size(); ++b) {
    const BandEntry& band = m.bands[b];
    const uint64_t end = counts.End(b);
    if (!std::isfinite(band.score_mass) || band.score_mass < 0) {
      return Refuse("band ", b, ": score_mass is ", band.score_mass);
    }
    if (end == counts.Begin(b)) {
      if (band.threshold != std::numeric_limits<float>::infinity() || band.score_mass != 0) {
        return Refuse("band ", b, ": ranks no pairs, but threshold is ", band.threshold,
                      " and score_mass is ", band.score_mass);
      }
      continue;
    }
    if (!std::isfinite(band.threshold)) {
      return Refuse("band ", b, ": threshold is ", band.threshold);
    }
    if (end <= forced) continue;
    if (band.threshold > previous) {
      return Refuse("band ", b, ": threshold ", band.threshold, " lies above the one before, ",
                    previous);
    }
    previous = band.threshold;
  }
  return absl::OkStatus();
}

absl::Status CheckFidelity(const Manifest& m) {
  if (!m.fidelity.has_value()) return absl::OkStatus();
  const Fidelity& f = *m.fidelity;
  if (f.chunks == 0 || f.tokens < f.chunks || f.tokens > m.context_tokens) {
    return Refuse("fidelity: ", f.tokens, " tokens of ", f.chunks, " chunks, the context has ",
                  m.context_tokens, " tokens");
  }
  if (f.correct.size() != m.bands.size()) {
    return Refuse("fidelity: of ", f.correct.size(), " bands, the object has ", m.bands.size());
  }
  bool measured = false;
  for (size_t band = 0; band < f.correct.size(); ++band) {
    measured = measured || f.correct[band].has_value();
    if (f.correct[band].value_or(0) > f.tokens) {
      return Refuse("fidelity: band ", band, " has ", *f.correct[band], " right of ", f.tokens);
    }
  }
  if (!measured) return Refuse("fidelity: measured at no band");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadName(ByteReader& reader) {
  KVTIER_ASSIGN_OR_RETURN(const uint32_t bytes, reader.ReadCount(limits::kNameBytesMax, 1));
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan text, reader.ReadBytes(bytes));
  return ToString(text);
}

template <typename Id>
absl::Status ReadId(ByteReader& reader, Id* id) {
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan bytes, reader.ReadBytes(Id::kSize));
  KVTIER_ASSIGN_OR_RETURN(*id, Id::FromBytes(bytes));
  return absl::OkStatus();
}

absl::StatusOr<Geometry> ReadGeometry(ByteReader& reader) {
  Geometry geometry;
  KVTIER_ASSIGN_OR_RETURN(geometry.kv_heads, reader.ReadU32());
  KVTIER_ASSIGN_OR_RETURN(geometry.head_dim, reader.ReadU32());
  KVTIER_ASSIGN_OR_RETURN(const uint8_t dtype, reader.ReadU8());
  KVTIER_ASSIGN_OR_RETURN(geometry.dtype, DTypeFromByte(dtype));
  KVTIER_ASSIGN_OR_RETURN(const uint32_t layers, reader.ReadCount(limits::kLayersMax, 1));
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan kinds, reader.ReadBytes(layers));
  geometry.layers.reserve(layers);
  for (std::byte kind : kinds) geometry.layers.push_back(static_cast<LayerKind>(kind));
  KVTIER_RETURN_IF_ERROR(geometry.Validate());
  return geometry;
}

absl::StatusOr<BandEntry> ReadBand(ByteReader& reader, const Geometry& geometry) {
  BandEntry band;
  KVTIER_ASSIGN_OR_RETURN(const uint32_t edge, reader.ReadU32());
  KVTIER_ASSIGN_OR_RETURN(band.edge, Ratio::FromMillionths(edge));
  KVTIER_ASSIGN_OR_RETURN(band.threshold, reader.ReadF32());
  KVTIER_ASSIGN_OR_RETURN(band.score_mass, reader.ReadF64());
  band.layers.resize(geometry.layer_count());
  for (SegmentEntry& segment : band.layers) {
    KVTIER_ASSIGN_OR_RETURN(const uint8_t codec, reader.ReadU8());
    segment.codec = static_cast<CodecId>(codec);
    segment.heads.resize(geometry.kv_heads);
    for (HeadEntry& head : segment.heads) {
      KVTIER_ASSIGN_OR_RETURN(head.rows, reader.ReadU32());
      KVTIER_ASSIGN_OR_RETURN(head.encoded_bytes, reader.ReadU64());
      KVTIER_ASSIGN_OR_RETURN(const uint32_t crc, reader.ReadU32());
      head.crc32c = Crc32c(crc);
    }
  }
  return band;
}

absl::StatusOr<Fidelity> ReadFidelity(ByteReader& reader, uint64_t bands) {
  Fidelity fidelity;
  KVTIER_ASSIGN_OR_RETURN(fidelity.chunks, reader.ReadU32());
  KVTIER_ASSIGN_OR_RETURN(fidelity.tokens, reader.ReadU64());
  for (uint64_t band = 0; band < bands; ++band) {
    KVTIER_ASSIGN_OR_RETURN(const uint64_t correct, reader.ReadU64());
    fidelity.correct.push_back(correct == kNotMeasured ? std::nullopt : std::optional(correct));
  }
  return fidelity;
}

// Version 2 adds to the bands.
absl::Status ReadVersion2(ByteReader& reader, Manifest& m) {
  KVTIER_ASSIGN_OR_RETURN(const uint8_t has_fidelity, reader.ReadU8());
  if (has_fidelity > 1) return Refuse("fidelity: presence is ", int{has_fidelity}, ", not 0 or 1");
  if (has_fidelity == 0) return absl::OkStatus();
  KVTIER_ASSIGN_OR_RETURN(m.fidelity, ReadFidelity(reader, m.bands.size()));
  return absl::OkStatus();
}

// What lies between the envelope's start and its CRC32C.
absl::StatusOr<Manifest> ReadBody(ByteReader& reader, uint32_t version) {
  Manifest m;
  KVTIER_RETURN_IF_ERROR(ReadId(reader, &m.key));
  KVTIER_RETURN_IF_ERROR(ReadId(reader, &m.upload_id));
  KVTIER_RETURN_IF_ERROR(ReadId(reader, &m.model_digest));
  KVTIER_RETURN_IF_ERROR(ReadId(reader, &m.prompt_profile_digest));
  KVTIER_RETURN_IF_ERROR(ReadId(reader, &m.last_block_hash));
  KVTIER_ASSIGN_OR_RETURN(m.system_tokens, reader.ReadU64());
  KVTIER_ASSIGN_OR_RETURN(m.context_tokens, reader.ReadU64());
  KVTIER_ASSIGN_OR_RETURN(m.model_name, ReadName(reader));
  KVTIER_ASSIGN_OR_RETURN(m.recipe, ReadName(reader));
  KVTIER_ASSIGN_OR_RETURN(m.geometry, ReadGeometry(reader));
  KVTIER_ASSIGN_OR_RETURN(const uint32_t bands, reader.ReadU32());
  KVTIER_RETURN_IF_ERROR(CheckAtMost("bands", bands, "kBandsMax", limits::kBandsMax));
  // The counts say exactly how many bytes must follow; nothing is allocated before they are there.
  const uint64_t expected = BandsBytes(bands, m.geometry.layer_count(), m.geometry.kv_heads);
  const uint64_t left = reader.remaining();
  const bool fits = version == 1
                        ? left == expected
                        : left == expected + 1 || left == expected + 1 + FidelityBytes(bands);
  if (!fits) {
    return Refuse("bands take ", expected, " bytes by their counts, ", left, " are left");
  }
  m.bands.reserve(bands);
  for (uint32_t band = 0; band < bands; ++band) {
    KVTIER_ASSIGN_OR_RETURN(BandEntry entry, ReadBand(reader, m.geometry));
    m.bands.push_back(std::move(entry));
  }
  if (version >= 2) KVTIER_RETURN_IF_ERROR(ReadVersion2(reader, m));
  if (reader.remaining() != 0) return Refuse(reader.remaining(), " bytes are left at the end");
  KVTIER_RETURN_IF_ERROR(m.Validate());
  // One encoding for each manifest.
  if (VersionOf(m) != version) {
    return Refuse("written as version ", version, ", what it says is version ", VersionOf(m));
  }
  return m;
}

}  // namespace

uint64_t SegmentEntry::encoded_bytes() const {
  uint64_t bytes = 0;
  for (const HeadEntry& head : heads) bytes += head.encoded_bytes;
  return bytes;
}

uint64_t SegmentEntry::rows() const {
  uint64_t sum = 0;
  for (const HeadEntry& head : heads) sum += head.rows;
  return sum;
}

SegmentEntry::ByteRange SegmentEntry::HeadBytes(HeadRange range) const {
  KVTIER_CHECK(range.begin <= range.end && range.end <= heads.size());
  ByteRange bytes;
  for (uint32_t head = 0; head < range.end; ++head) {
    if (head < range.begin) bytes.begin += heads[head].encoded_bytes;
    bytes.end += heads[head].encoded_bytes;
  }
  return bytes;
}

uint64_t BandEntry::encoded_bytes() const {
  uint64_t bytes = 0;
  for (const SegmentEntry& segment : layers) bytes += segment.encoded_bytes();
  return bytes;
}

std::vector<Ratio> Manifest::edges() const {
  std::vector<Ratio> edges;
  edges.reserve(bands.size());
  for (const BandEntry& band : bands) edges.push_back(band.edge);
  return edges;
}

uint64_t Manifest::PrefixBytes(uint32_t band_count) const {
  KVTIER_CHECK(band_count <= bands.size());
  uint64_t bytes = 0;
  for (uint32_t band = 0; band < band_count; ++band) bytes += bands[band].encoded_bytes();
  return bytes;
}

SelectionRule Manifest::selection() const { return SelectionOfRecipe(recipe); }

uint64_t Manifest::RankEnd(Ratio ratio) const {
  const uint64_t heads = uint64_t{geometry.scored_layer_count()} * geometry.kv_heads;
  return KeptPairs(selection(), ratio, heads, ranked_tokens(), geometry.kv_heads);
}

uint64_t Manifest::protected_tokens() const {
  return ProtectsSystemPrompt(selection()) ? system_tokens : 0;
}

absl::Status Manifest::Validate() const {
  KVTIER_RETURN_IF_ERROR(CheckHeader(*this));
  KVTIER_RETURN_IF_ERROR(BandEdges::CreateTruncated(edges()).status());
  const CodecId codec = CodecOfRecipe(recipe);
  for (uint32_t band = 0; band < bands.size(); ++band) {
    if (bands[band].layers.size() != geometry.layers.size()) {
      return Refuse("band ", band, ": ", bands[band].layers.size(), " layers, the geometry has ",
                    geometry.layers.size());
    }
    for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
      KVTIER_RETURN_IF_ERROR(CheckSegmentEntry(*this, codec, BandIndex(band), LayerIndex(layer)));
    }
  }
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    const bool scored = geometry.layers[layer] == LayerKind::kGlobal;
    KVTIER_RETURN_IF_ERROR(scored ? CheckScoredLayer(*this, LayerIndex(layer))
                                  : CheckSlidingLayer(*this, LayerIndex(layer)));
  }
  const RankCounts counts(*this);
  for (uint32_t band = 0; band < bands.size(); ++band) {
    KVTIER_RETURN_IF_ERROR(CheckRankedRows(*this, counts, band));
  }
  KVTIER_RETURN_IF_ERROR(CheckThresholds(*this, counts));
  KVTIER_RETURN_IF_ERROR(CheckFidelity(*this));
  KVTIER_RETURN_IF_ERROR(
      CheckAtMost("encoded bytes", total_bytes(), "kObjectBytesMax", limits::kObjectBytesMax));
  return CheckAtMost("its own size", EncodedManifestBytes(*this), "kManifestBytesMax",
                     limits::kManifestBytesMax);
}

std::string EncodeManifest(const Manifest& manifest) {
  const uint64_t bytes = EncodedManifestBytes(manifest);
  std::string out;
  out.reserve(bytes);
  ByteWriter writer(&out);
  writer.WriteBytes(kMagic);
  writer.WriteU32(VersionOf(manifest));
  writer.WriteU64(bytes);
  writer.WriteBytes(manifest.key.bytes());
  writer.WriteBytes(manifest.upload_id.bytes());
  writer.WriteBytes(manifest.model_digest.bytes());
  writer.WriteBytes(manifest.prompt_profile_digest.bytes());
  writer.WriteBytes(manifest.last_block_hash.bytes());
  writer.WriteU64(manifest.system_tokens);
  writer.WriteU64(manifest.context_tokens);
  writer.WriteU32(static_cast<uint32_t>(manifest.model_name.size()));
  writer.WriteBytes(manifest.model_name);
  writer.WriteU32(static_cast<uint32_t>(manifest.recipe.size()));
  writer.WriteBytes(manifest.recipe);
  writer.WriteU32(manifest.geometry.kv_heads);
  writer.WriteU32(manifest.geometry.head_dim);
  writer.WriteU8(static_cast<uint8_t>(manifest.geometry.dtype));
  writer.WriteU32(manifest.geometry.layer_count());
  for (LayerKind kind : manifest.geometry.layers) writer.WriteU8(static_cast<uint8_t>(kind));
  writer.WriteU32(static_cast<uint32_t>(manifest.bands.size()));
  for (const BandEntry& band : manifest.bands) {
    writer.WriteU32(band.edge.millionths());
    writer.WriteF32(band.threshold);
    writer.WriteF64(band.score_mass);
    for (const SegmentEntry& segment : band.layers) {
      writer.WriteU8(static_cast<uint8_t>(segment.codec));
      for (const HeadEntry& head : segment.heads) {
        writer.WriteU32(head.rows);
        writer.WriteU64(head.encoded_bytes);
        writer.WriteU32(head.crc32c.value());
      }
    }
  }
  if (VersionOf(manifest) >= 2) {
    writer.WriteU8(manifest.fidelity.has_value() ? 1 : 0);
    if (manifest.fidelity.has_value()) {
      writer.WriteU32(manifest.fidelity->chunks);
      writer.WriteU64(manifest.fidelity->tokens);
      for (const std::optional<uint64_t>& correct : manifest.fidelity->correct) {
        writer.WriteU64(correct.value_or(kNotMeasured));
      }
    }
  }
  writer.WriteU32(ComputeCrc32c(AsBytes(out)).value());
  KVTIER_CHECK_EQ(out.size(), bytes) << "EncodeManifest of a manifest that Validate refuses";
  return out;
}

absl::StatusOr<Manifest> DecodeManifest(std::span<const std::byte> bytes) {
  if (bytes.size() > limits::kManifestBytesMax) {
    return CheckAtMost("its own size", bytes.size(), "kManifestBytesMax",
                       limits::kManifestBytesMax);
  }
  if (bytes.size() < kEnvelopeBytes) return absl::DataLossError("manifest: truncated");
  if (AsStringView(bytes.first(kMagic.size())) != kMagic) {
    return absl::DataLossError("manifest: wrong magic");
  }
  const uint64_t length = LoadLittleEndian<uint64_t>(bytes.data() + kLengthOffset);
  if (length != bytes.size()) {
    return absl::DataLossError(
        absl::StrCat("manifest: says ", length, " bytes, has ", bytes.size()));
  }
  const ByteSpan covered = bytes.first(bytes.size() - kCrcBytes);
  const Crc32c stored(LoadLittleEndian<uint32_t>(bytes.data() + covered.size()));
  if (ComputeCrc32c(covered) != stored) {
    return absl::DataLossError("manifest: CRC32C does not match");
  }
  // Only now, so that a flipped bit is never taken for another version.
  const uint32_t version = LoadLittleEndian<uint32_t>(bytes.data() + kMagic.size());
  if (version == 0 || version > kManifestFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "manifest: format version ", version, ", this build reads 1 to ", kManifestFormatVersion));
  }
  ByteReader reader(covered.subspan(kEnvelopeBytes - kCrcBytes));
  return ReadBody(reader, version);
}

}  // namespace kvtier
