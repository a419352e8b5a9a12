#include "compressor/host_packer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "compressor/rule_ranking.h"
#include "kvcache/half_rounding.h"

namespace kvtier {
namespace {

// Makes `buffer` hold at least `bytes`; its content is lost.
absl::Status Grow(AlignedBytes& buffer, uint64_t bytes) {
  if (buffer.size() >= bytes) return absl::OkStatus();
  KVTIER_ASSIGN_OR_RETURN(buffer,
                          AlignedBytes::TryAllocate(bytes, AlignedBytes::Fill::kUninitialized));
  return absl::OkStatus();
}

}  // namespace

float16 ProtectedScore() { return float16(std::numeric_limits<float>::infinity()); }

float16 StoredScore(float log_score) { return float16(std::clamp(log_score, -kHalfMax, kHalfMax)); }

absl::Status HeadPacker::Fill(const SegmentFill& fill, uint32_t head,
                              std::span<const uint32_t> positions, const HeadRowsMut& out) {
  std::copy(positions.begin(), positions.end(), out.positions.begin());
  if (fill.codec == CodecId::kRaw) {
    return backend_.GatherRows(fill.layer, head, positions, out.keys, out.values);
  }
  const uint64_t bytes = positions.size() * fill.geometry->row_bytes();
  KVTIER_RETURN_IF_ERROR(Grow(raw_keys_, bytes));
  KVTIER_RETURN_IF_ERROR(Grow(raw_values_, bytes));
  KVTIER_RETURN_IF_ERROR(
      backend_.GatherRows(fill.layer, head, positions, raw_keys_.data(), raw_values_.data()));
  const absl::Status encoded =
      EncodeHeadRows(*fill.geometry, fill.codec, static_cast<uint32_t>(positions.size()),
                     raw_keys_.data(), raw_values_.data(), out);
  if (encoded.ok()) return encoded;
  return absl::Status(encoded.code(), absl::StrCat("packing: codec ", CodecName(fill.codec),
                                                   ": layer ", fill.model_layer, " head ", head,
                                                   " band ", fill.band, ": ", encoded.message()));
}

HostRankedRows::HostRankedRows(Backend& backend, std::shared_ptr<const ScoreTable> scores,
                               std::shared_ptr<const BandAssignment> assignment)
    : scores_(std::move(scores)), assignment_(std::move(assignment)), heads_(backend) {
  const size_t bands = assignment_->thresholds.size();
  counts_ = {.layers = scores_->layers,
             .kv_heads = scores_->kv_heads,
             .tokens = scores_->tokens,
             .thresholds = assignment_->thresholds,
             .score_mass = assignment_->score_mass,
             .rows = {}};
  counts_.rows.resize(uint64_t{counts_.layers} * counts_.kv_heads * bands);
  const uint8_t* band = assignment_->band.data();
  for (uint64_t row = 0; row < uint64_t{counts_.layers} * counts_.kv_heads; ++row) {
    uint32_t* const rows = counts_.rows.data() + row * bands;
    for (uint64_t t = 0; t < counts_.tokens; ++t) ++rows[*band++];
  }
}

void HostRankedRows::Split(uint32_t scored_layer, uint64_t protected_tokens) {
  if (split_layer_ == scored_layer) return;
  split_layer_ = scored_layer;
  const uint64_t bands = counts_.bands();
  positions_.assign(scores_->kv_heads * bands, {});
  for (uint32_t head = 0; head < scores_->kv_heads; ++head) {
    std::vector<uint32_t>* const of_band = &positions_[head * bands];
    for (uint64_t p = 0; p < protected_tokens; ++p) of_band[0].push_back(static_cast<uint32_t>(p));
    const uint64_t begin = (uint64_t{scored_layer} * scores_->kv_heads + head) * scores_->tokens;
    for (uint64_t t = 0; t < scores_->tokens; ++t) {
      of_band[assignment_->band[begin + t]].push_back(static_cast<uint32_t>(protected_tokens + t));
    }
  }
}

absl::StatusOr<std::unique_ptr<SegmentFilling>> HostRankedRows::BeginSegment(
    const SegmentFill& fill, SegmentBuilder& segment) {
  Split(fill.scored_layer, fill.protected_tokens);
  for (uint32_t head = 0; head < scores_->kv_heads; ++head) {
    const std::vector<uint32_t>& positions = positions_[head * counts_.bands() + fill.band];
    if (positions.empty()) continue;
    const HeadRowsMut out = segment.head(head);
    for (size_t i = 0; i < positions.size(); ++i) {
      out.log_scores[i] = positions[i] < fill.protected_tokens
                              ? ProtectedScore()
                              : StoredScore(scores_->at(fill.scored_layer, head,
                                                        positions[i] - fill.protected_tokens));
    }
    KVTIER_RETURN_IF_ERROR(heads_.Fill(fill, head, positions, out));
  }
  return nullptr;
}

absl::StatusOr<std::unique_ptr<RankedRows>> RankRows(Backend& backend, const RankRequest& request) {
  const BackendScores& scores = *request.scores;
  if (Packer* packer = backend.packer(); packer != nullptr) {
    absl::StatusOr<std::unique_ptr<RankedRows>> ranked = packer->Rank(request);
    if (!absl::IsResourceExhausted(ranked.status())) return ranked;
    // Slower, but a context whose cache has been filled and scored is not thrown away.
    KVTIER_LOG_EVERY_N_SEC(WARNING, 60)
        << "ranking " << scores.shape().pairs() << " pairs on the host: " << ranked.status();
  }
  // Not owned where the host has them already: they stay while the result is used.
  std::shared_ptr<const ScoreTable> table(std::shared_ptr<const void>(), scores.host());
  if (table == nullptr) {
    KVTIER_ASSIGN_OR_RETURN(ScoreTable read, scores.Read());
    table = std::make_shared<const ScoreTable>(std::move(read));
  }
  KVTIER_ASSIGN_OR_RETURN(
      BandAssignment assignment,
      AssignBandsByRule(*table, *request.edges, request.rule, request.system_prompt));
  return std::make_unique<HostRankedRows>(
      backend, std::move(table), std::make_shared<const BandAssignment>(std::move(assignment)));
}

PairBytes PairBytesOf(Backend& backend) {
  if (const Packer* packer = backend.packer(); packer != nullptr) return packer->pair_bytes();
  return {.ranking = sizeof(uint8_t), .ranked = sizeof(uint8_t)};  // The band.
}

}  // namespace kvtier
