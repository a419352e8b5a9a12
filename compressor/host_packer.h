// Packing on the host: positions from a band assignment, rows through Backend::GatherRows, codecs
// by kvcache/row_codec.h. The twin that every Packer is tested against.
#ifndef KVTIER_COMPRESSOR_HOST_PACKER_H_
#define KVTIER_COMPRESSOR_HOST_PACKER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/aligned_bytes.h"
#include "compressor/backend.h"
#include "compressor/packer.h"

namespace kvtier {

// The log score of a protected row, and a ranked one's as objects store it.
float16 ProtectedScore();
float16 StoredScore(float log_score);

// Rows of one head of a layer, as they lie there, into the segment. `layer` and `band` are named in
// messages. Not thread-safe: keeps memory for rows on their way into a codec.
class HeadPacker {
 public:
  explicit HeadPacker(Backend& backend) : backend_(backend) {}

  // Keys, values, their scales and positions; not log scores. Errors as RankedRows::BeginSegment.
  // REQUIRES: out has positions.size() rows.
  absl::Status Fill(const SegmentFill& fill, uint32_t head, std::span<const uint32_t> positions,
                    const HeadRowsMut& out);

 private:
  Backend& backend_;
  AlignedBytes raw_keys_;  // [rows, head_dim]
  AlignedBytes raw_values_;
};

class HostRankedRows final : public RankedRows {
 public:
  // The assignment is of these scores, its bands are below thresholds.size(). The backend is not
  // owned.
  HostRankedRows(Backend& backend, std::shared_ptr<const ScoreTable> scores,
                 std::shared_ptr<const BandAssignment> assignment);

  const BandCounts& counts() const override { return counts_; }
  absl::StatusOr<std::unique_ptr<SegmentFilling>> BeginSegment(const SegmentFill& fill,
                                                               SegmentBuilder& segment) override;

 private:
  // Positions of a layer by head and band, [kv_heads, bands]: the bands of a layer are filled one
  // after the other, and share one pass over its pairs.
  void Split(uint32_t scored_layer, uint64_t protected_tokens);

  const std::shared_ptr<const ScoreTable> scores_;
  const std::shared_ptr<const BandAssignment> assignment_;
  HeadPacker heads_;
  BandCounts counts_;
  std::optional<uint32_t> split_layer_;
  std::vector<std::vector<uint32_t>> positions_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_HOST_PACKER_H_
