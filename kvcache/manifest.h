// The manifest: what a stored object is, and how to read and verify every byte of it. Written
// once, last of all the object's bytes, and never changed. The same encoding travels and rests.
// Grammar, sizes, checksum coverage, limits and a worked example: docs/object_format.md.
#ifndef KVTIER_KVCACHE_MANIFEST_H_
#define KVTIER_KVCACHE_MANIFEST_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/crc32c.h"
#include "kvcache/bands.h"
#include "kvcache/codec_id.h"
#include "kvcache/geometry.h"
#include "kvcache/ids.h"
#include "kvcache/selection.h"

namespace kvtier {

// The newest that this build reads and writes. Older ones are read too, and what an older grammar
// can say is written as that: version 2 is for objects that end below ratio 1 or carry Fidelity.
// Codecs and recipes are words in version 1's grammar: a build that lacks one refuses the manifest
// as INVALID_ARGUMENT, which names the codec or the count, not as a newer version.
inline constexpr uint32_t kManifestFormatVersion = 2;

// One KV head inside one segment.
struct HeadEntry {
  uint32_t rows = 0;           // Kept (layer, head, position) triples of this band.
  uint64_t encoded_bytes = 0;  // Multiple of kSegmentAlignment; 0 when rows is 0.
  Crc32c crc32c;               // Of those bytes, padding included.
  friend bool operator==(const HeadEntry&, const HeadEntry&) = default;
};

// One (band, layer).
struct SegmentEntry {
  CodecId codec = CodecId::kRaw;
  std::vector<HeadEntry> heads;    // [kv_heads]
  uint64_t encoded_bytes() const;  // Sum over heads.
  uint64_t rows() const;
  // Byte range of `heads` inside the segment. REQUIRES: a range within kv_heads.
  struct ByteRange {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  ByteRange HeadBytes(HeadRange range) const;
  friend bool operator==(const SegmentEntry&, const SegmentEntry&) = default;
};

// One band over all layers.
struct BandEntry {
  Ratio edge;             // Bands 0..b together are the cache at this ratio.
  float threshold = 0;    // Log score (natural) of the band's last rank; +inf if it ranks none.
  double score_mass = 0;  // Sum of exp(log score) over the band's ranked rows.
  std::vector<SegmentEntry> layers;  // [layers]
  uint64_t encoded_bytes() const;
  friend bool operator==(const BandEntry&, const BandEntry&) = default;
};

// How well the context can be repeated from the object, measured once, when it was compressed
// (compressor/fidelity.h): greedy next-token hits under teacher forcing.
struct Fidelity {
  uint32_t chunks = 0;  // Scoring chunks that were repeated, evenly spread over the context.
  uint64_t tokens = 0;  // Predicted, one by one; the same ones for every band.
  // [bands] of them right when reading bands 0..b. Empty: not measured at that edge.
  std::vector<std::optional<uint64_t>> correct;
  friend bool operator==(const Fidelity&, const Fidelity&) = default;
};

struct Manifest {
  Key key;
  UploadId upload_id;
  std::string model_name;  // For people; the digest decides.
  Digest model_digest;
  std::string recipe;  // Canonical text, as in the key descriptor.
  Digest prompt_profile_digest;
  Geometry geometry;
  uint64_t system_tokens = 0;   // n_s: positions [0, n_s); see protected_tokens().
  uint64_t context_tokens = 0;  // n_c: positions [n_s, n_s + n_c).
  // Of the last full block of the context. All zero without one, or when the object is not to be
  // found by prefix.
  TokenBlockHash last_block_hash;
  std::vector<BandEntry> bands;
  std::optional<Fidelity> fidelity;

  // New tokens continue here, whatever was evicted.
  uint64_t logical_length() const { return system_tokens + context_tokens; }
  // By which rule the recipe selects rows (kvcache/recipe.h).
  SelectionRule selection() const;
  // Tokens that lie in band 0 of every head without being ranked: positions [0, protected_tokens).
  uint64_t protected_tokens() const;
  // Tokens of a head that are ranked: positions [protected_tokens, logical_length).
  uint64_t ranked_tokens() const { return logical_length() - protected_tokens(); }
  // N of the ratio: ranked rows of all scored layers and heads.
  uint64_t scored_pairs() const { return geometry.scored_pairs(ranked_tokens()); }
  // One past the last rank of the pairs that `ratio` keeps, by the recipe's rule.
  uint64_t RankEnd(Ratio ratio) const;
  std::vector<Ratio> edges() const;
  const SegmentEntry& segment(BandIndex band, LayerIndex layer) const {
    return bands[band.value()].layers[layer.value()];
  }
  // Encoded bytes of bands 0..band_count-1.
  uint64_t PrefixBytes(uint32_t band_count) const;
  uint64_t total_bytes() const { return PrefixBytes(static_cast<uint32_t>(bands.size())); }
  // The same cache uncompressed: every position of every layer and head, keys and values only.
  uint64_t dense_bytes() const { return logical_length() * geometry.dense_token_bytes(); }

  // Internal consistency: shapes, limits, edges, and that the row counts are exactly those of the
  // recipe's selection rule (KeptPairs): band b ranks k(b) - k(b-1) pairs. Protected and sliding
  // rows, all in band 0, come on top. Every segment has the recipe's codec.
  // INVALID_ARGUMENT naming the field and the limit.
  absl::Status Validate() const;
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

// REQUIRES: manifest.Validate() is ok.
std::string EncodeManifest(const Manifest& manifest);
// Never allocates from an unchecked count; the result has passed Validate().
//   DATA_LOSS            wrong magic, wrong length, or the trailing CRC32C does not match
//   FAILED_PRECONDITION  a format version that this build does not read (named)
//   INVALID_ARGUMENT     intact, but inconsistent; or above limits::kManifestBytesMax
absl::StatusOr<Manifest> DecodeManifest(std::span<const std::byte> bytes);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_MANIFEST_H_
