// Ranking and packing where the cache lies: which band each pair of a context belongs to, and the
// rows of a band into a segment as the object stores them (kvcache/segment_layout.h). On the host
// (HostRankedRows), or on a device by the Packer of its backend; bit for bit the same, given the
// same scores.
//
//   KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<RankedRows> ranked, RankRows(backend, request));
//   KVTIER_ASSIGN_OR_RETURN(CompressedObject object, PackObject(backend, cache, *ranked, ...));
#ifndef KVTIER_COMPRESSOR_PACKER_H_
#define KVTIER_COMPRESSOR_PACKER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "compressor/ranking.h"
#include "kvcache/bands.h"
#include "kvcache/segment.h"
#include "kvcache/selection.h"

namespace kvtier {

struct RankRequest {
  const BackendScores* scores = nullptr;  // Of the same backend; as AssignBandsByRule takes them.
  const BandEdges* edges = nullptr;
  SelectionRule rule = SelectionRule::kExact;
  bool system_prompt = false;  // There is one, so that no first token needs to come first.
};

// How the pairs were cut. The sizes are those of the score table.
struct BandCounts {
  uint32_t layers = 0;  // Scored ones.
  uint32_t kv_heads = 0;
  uint64_t tokens = 0;
  std::vector<float> thresholds;   // [bands] as BandAssignment
  std::vector<double> score_mass;  // [bands] up to rounding
  std::vector<uint32_t> rows;      // [layers, kv_heads, bands] ranked rows

  uint32_t bands() const { return static_cast<uint32_t>(thresholds.size()); }
  uint32_t RowsOf(uint32_t layer, uint32_t head, uint32_t band) const {
    return rows[(uint64_t{layer} * kv_heads + head) * bands() + band];
  }
};

// What one segment is filled from. Of every head: first, in band 0, the protected rows
// [0, protected_tokens) with log score +inf, then the band's ranked rows by ascending position,
// with their log scores as fp16 (finite: beyond its range held at the largest number).
struct SegmentFill {
  KvLayerView layer;
  const Geometry* geometry = nullptr;
  uint32_t model_layer = 0;   // Named in messages.
  uint32_t scored_layer = 0;  // Counts scored layers only.
  uint32_t band = 0;
  uint64_t protected_tokens = 0;  // Row t of the ranking is row protected_tokens + t of the layer.
  CodecId codec = CodecId::kRaw;

  uint32_t RowsOf(const BandCounts& counts, uint32_t head) const {
    const uint32_t ranked = counts.RowsOf(scored_layer, head, band);
    return ranked + (band == 0 ? static_cast<uint32_t>(protected_tokens) : 0);
  }
};

// A segment that is being filled. When it is gone, nothing writes into the segment any more.
class SegmentFilling {
 public:
  virtual ~SegmentFilling() = default;
  // Returns when the segment is filled. Once. Errors as RankedRows::BeginSegment.
  virtual absl::Status Wait() = 0;
};

// The pairs of one context, cut into bands. Not thread-safe: packed by one thread. Outlives the
// fillings that it begins.
class RankedRows {
 public:
  virtual ~RankedRows() = default;
  virtual const BandCounts& counts() const = 0;

  // Begins to fill every head of `segment`, made with fill.RowsOf() rows of each head and
  // fill.codec, so that a segment can be on its way to the host while the next one is gathered. The
  // segment stays where it is and is not looked at until Wait() has returned. Null: it is filled.
  // INVALID_ARGUMENT: a row that the codec cannot hold, named by layer, head, band and row.
  // RESOURCE_EXHAUSTED, INTERNAL: of the device.
  virtual absl::StatusOr<std::unique_ptr<SegmentFilling>> BeginSegment(const SegmentFill& fill,
                                                                       SegmentBuilder& segment) = 0;

  // Both at once.
  absl::Status FillSegment(const SegmentFill& fill, SegmentBuilder& segment) {
    absl::StatusOr<std::unique_ptr<SegmentFilling>> filling = BeginSegment(fill, segment);
    if (!filling.ok() || *filling == nullptr) return filling.status();
    return (*filling)->Wait();
  }
};

// Memory beside the scores (BackendScores), on the host or the device, of every pair.
struct PairBytes {
  uint64_t ranking = 0;  // At the peak of ranking.
  uint64_t ranked = 0;   // From then on, by the RankedRows.
};

// A backend's own way. Thread-safe. The backend outlives it and every RankedRows.
class Packer {
 public:
  virtual ~Packer() = default;
  // INVALID_ARGUMENT as AssignBandsByRule. RESOURCE_EXHAUSTED, INTERNAL: of the device.
  // REQUIRES: the scores and edges stay as they are while the result is used.
  virtual absl::StatusOr<std::unique_ptr<RankedRows>> Rank(const RankRequest& request) = 0;
  virtual PairBytes pair_bytes() const = 0;
};

// By the backend's packer; on the host where it has none, and, with a warning in the log, where it
// says RESOURCE_EXHAUSTED. Errors as Packer::Rank.
absl::StatusOr<std::unique_ptr<RankedRows>> RankRows(Backend& backend, const RankRequest& request);

// Of RankRows, for estimates.
PairBytes PairBytesOf(Backend& backend);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_PACKER_H_
