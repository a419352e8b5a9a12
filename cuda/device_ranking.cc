#include "cuda/device_ranking.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/ranking.h"
#include "compressor/rule_ranking.h"
#include "cuda/device_scores.h"
#include "cuda/rank_bands.h"
#include "cuda/sort_pairs.h"

namespace kvtier {
namespace {

static_assert(kRankBandsMax >= limits::kBandsMax, "every object's bands can be ranked");

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kScoreKeyBits = 32;
// Ranks that one block sums up.
constexpr int64_t kMassRanks = 8192;

// Bits of every number below `count`.
int BitsBelow(int64_t count) {
  return std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(count - 1))));
}

// A ranking in the making: keys and values, and spare arrays that sorts need.
class Ranker {
 public:
  Ranker(const RankRequest& request, const float* scores, const std::shared_ptr<Device>& device)
      : request_scores_(*request.scores),
        scores_(scores),
        edges_(*request.edges),
        rule_(request.rule),
        first_token_first_(!request.system_prompt && PutsFirstTokenFirst(request.rule)),
        device_(device),
        pairs_(static_cast<int64_t>(request_scores_.shape().pairs())),
        tokens_(static_cast<int64_t>(request_scores_.shape().tokens)),
        rows_(static_cast<int64_t>(request_scores_.shape().rows())) {}

  absl::Status Allocate() {
    const uint64_t bytes = static_cast<uint64_t>(pairs_) * sizeof(uint32_t);
    KVTIER_ASSIGN_OR_RETURN(keys_, DeviceMemory::Allocate(device_, bytes));
    KVTIER_ASSIGN_OR_RETURN(values_, DeviceMemory::Allocate(device_, bytes));
    KVTIER_ASSIGN_OR_RETURN(spare_keys_, DeviceMemory::Allocate(device_, bytes));
    KVTIER_ASSIGN_OR_RETURN(spare_values_, DeviceMemory::Allocate(device_, bytes));
    KVTIER_ASSIGN_OR_RETURN(band_, DeviceMemory::Allocate(device_, pairs_));
    uint64_t scratch = 0;
    KVTIER_RETURN_IF_ERROR(Check(SortPairsScratch(SortOf(kScoreKeyBits), scratch), "sort"));
    scratch_bytes_ = scratch;
    KVTIER_ASSIGN_OR_RETURN(scratch_, DeviceMemory::Allocate(device_, scratch));
    return absl::OkStatus();
  }

  // Bands, thresholds and masses of a rule that ranks pairs.
  absl::Status RankPairs(DeviceRanking& result) {
    const bool each_row = rule_ == SelectionRule::kPerHead;
    KVTIER_RETURN_IF_ERROR(SortScores());
    if (each_row) KVTIER_RETURN_IF_ERROR(SortRows());
    std::vector<uint64_t> rank_ends;
    for (const Ratio edge : edges_.edges()) {
      rank_ends.push_back(KeptPairs(rule_, edge, each_row ? 1 : static_cast<uint64_t>(rows_),
                                    static_cast<uint64_t>(tokens_)));
    }
    const int64_t period = each_row ? tokens_ : pairs_;
    KVTIER_RETURN_IF_ERROR(CheckRankEnds(rank_ends, static_cast<uint64_t>(period)));
    const std::vector<int64_t> ends(rank_ends.begin(), rank_ends.end());
    KVTIER_RETURN_IF_ERROR(Assign(ends, period, result));
    return SumMass(ends, period, result);
  }

  // Of rules that the host ranks by.
  absl::Status TakeBands(const BandAssignment& assignment, DeviceRanking& result) {
    result.counts.thresholds = assignment.thresholds;
    result.counts.score_mass = assignment.score_mass;
    return device_->CopyIn(assignment.band.data(), band_.as<void>(), assignment.band.size());
  }

  // The tokens of each row and band side by side.
  absl::Status Group(DeviceRanking& result) {
    const int64_t groups = rows_ * edges_.size();
    KVTIER_RETURN_IF_ERROR(Check(LaunchGroupKeys({.band = band_.as<uint8_t>(),
                                                  .keys = keys_.as<uint32_t>(),
                                                  .values = values_.as<uint32_t>(),
                                                  .pairs = pairs_,
                                                  .tokens = tokens_,
                                                  .bands = static_cast<int>(edges_.size())},
                                                 device_->stream()),
                                 "rank"));
    KVTIER_RETURN_IF_ERROR(Sort(BitsBelow(groups)));
    result.starts.resize(static_cast<size_t>(groups + 1));
    KVTIER_ASSIGN_OR_RETURN(
        const DeviceMemory starts,
        DeviceMemory::Allocate(device_, result.starts.size() * sizeof(uint32_t)));
    KVTIER_RETURN_IF_ERROR(Check(LaunchGroupStarts({.keys = keys_.as<uint32_t>(),
                                                    .starts = starts.as<uint32_t>(),
                                                    .pairs = pairs_,
                                                    .groups = groups},
                                                   device_->stream()),
                                 "rank"));
    KVTIER_RETURN_IF_ERROR(device_->CopyOut(starts.as<void>(), result.starts.data(),
                                            result.starts.size() * sizeof(uint32_t)));
    result.tokens = std::move(values_);
    for (size_t g = 0; g + 1 < result.starts.size(); ++g) {
      result.counts.rows.push_back(result.starts[g + 1] - result.starts[g]);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Check(DeviceError error, absl::string_view operation) {
    return device_->Check(error, operation);
  }

  SortPairsParams SortOf(int bits) const {
    return {.keys = keys_.as<uint32_t>(),
            .values = values_.as<uint32_t>(),
            .spare_keys = spare_keys_.as<uint32_t>(),
            .spare_values = spare_values_.as<uint32_t>(),
            .count = pairs_,
            .bits = bits,
            .scratch = scratch_.as<void>(),
            .scratch_bytes = scratch_bytes_};
  }

  // keys_, and values_ with them.
  absl::Status Sort(int bits) {
    // What a sort needs depends on the bits little, but may.
    uint64_t bytes = 0;
    KVTIER_RETURN_IF_ERROR(Check(SortPairsScratch(SortOf(bits), bytes), "sort"));
    if (bytes > scratch_bytes_) {
      KVTIER_ASSIGN_OR_RETURN(scratch_, DeviceMemory::Allocate(device_, bytes));
      scratch_bytes_ = bytes;
    }
    SortPairsParams sort = SortOf(bits);
    KVTIER_RETURN_IF_ERROR(Check(LaunchSortPairs(sort, device_->stream()), "sort"));
    if (sort.keys != keys_.as<uint32_t>()) std::swap(keys_, spare_keys_);
    if (sort.values != values_.as<uint32_t>()) std::swap(values_, spare_values_);
    return absl::OkStatus();
  }

  // All pairs by (score falling, first tokens first, flat index).
  absl::Status SortScores() {
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory refused,
                            DeviceMemory::Allocate(device_, sizeof(uint32_t)));
    KVTIER_RETURN_IF_ERROR(device_->Zero(refused.as<void>(), sizeof(uint32_t)));
    KVTIER_RETURN_IF_ERROR(Check(LaunchScoreKeys({.scores = scores_,
                                                  .keys = keys_.as<uint32_t>(),
                                                  .values = values_.as<uint32_t>(),
                                                  .refused = refused.as<uint32_t>(),
                                                  .pairs = pairs_,
                                                  .tokens = tokens_,
                                                  .first_token_first = first_token_first_},
                                                 device_->stream()),
                                 "rank"));
    uint32_t first = 0;
    KVTIER_RETURN_IF_ERROR(device_->CopyOut(refused.as<void>(), &first, sizeof(first)));
    if (first != 0) {
      KVTIER_ASSIGN_OR_RETURN(const ScoreTable table, request_scores_.Read());
      KVTIER_RETURN_IF_ERROR(CheckScores(table));  // Names it.
      return absl::InternalError(
          absl::StrCat(device_->name(), ": rank: refuses score ", ~first, ", which is a number"));
    }
    return Sort(kScoreKeyBits);
  }

  // The pairs of each row together, in the order that they have.
  absl::Status SortRows() {
    KVTIER_RETURN_IF_ERROR(Check(LaunchRowKeys({.order = values_.as<uint32_t>(),
                                                .keys = keys_.as<uint32_t>(),
                                                .pairs = pairs_,
                                                .tokens = tokens_},
                                               device_->stream()),
                                 "rank"));
    return Sort(BitsBelow(rows_));
  }

  // `ends` are those of every `period` sorted pairs.
  absl::Status Assign(const std::vector<int64_t>& ends, int64_t period, DeviceRanking& result) {
    const size_t bands = ends.size();
    std::vector<float> thresholds(static_cast<size_t>(pairs_ / period) * bands, kInfinity);
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory on_device,
                            DeviceMemory::Of(device_, std::span<const float>(thresholds)));
    AssignBandsParams params{.order = values_.as<uint32_t>(),
                             .scores = scores_,
                             .band = band_.as<uint8_t>(),
                             .thresholds = on_device.as<float>(),
                             .pairs = pairs_,
                             .period = period,
                             .bands = static_cast<int>(bands)};
    std::copy(ends.begin(), ends.end(), params.ends);
    KVTIER_RETURN_IF_ERROR(Check(LaunchAssignBands(params, device_->stream()), "rank"));
    KVTIER_RETURN_IF_ERROR(device_->CopyOut(on_device.as<void>(), thresholds.data(),
                                            thresholds.size() * sizeof(float)));
    result.counts.thresholds.assign(bands, kInfinity);
    for (size_t i = 0; i < thresholds.size(); ++i) {
      float& lowest = result.counts.thresholds[i % bands];
      lowest = std::min(lowest, thresholds[i]);
    }
    return absl::OkStatus();
  }

  absl::Status SumMass(const std::vector<int64_t>& ends, int64_t period, DeviceRanking& result) {
    std::vector<MassItem> items;
    std::vector<size_t> band_of_item;
    for (int64_t first = 0; first < pairs_; first += period) {
      int64_t begin = 0;
      for (size_t band = 0; band < ends.size(); ++band) {
        for (; begin < ends[band]; begin = std::min(begin + kMassRanks, ends[band])) {
          items.push_back({first + begin, first + std::min(begin + kMassRanks, ends[band])});
          band_of_item.push_back(band);
        }
      }
    }
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory on_device,
                            DeviceMemory::Of(device_, std::span<const MassItem>(items)));
    std::vector<double> sums(items.size());
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory sums_on_device,
                            DeviceMemory::Allocate(device_, sums.size() * sizeof(double)));
    KVTIER_RETURN_IF_ERROR(Check(LaunchScoreMass({.order = values_.as<uint32_t>(),
                                                  .scores = scores_,
                                                  .items = on_device.as<MassItem>(),
                                                  .sums = sums_on_device.as<double>(),
                                                  .item_count = static_cast<int64_t>(items.size())},
                                                 device_->stream()),
                                 "rank"));
    KVTIER_RETURN_IF_ERROR(
        device_->CopyOut(sums_on_device.as<void>(), sums.data(), sums.size() * sizeof(double)));
    result.counts.score_mass.assign(ends.size(), 0.0);
    for (size_t i = 0; i < sums.size(); ++i) result.counts.score_mass[band_of_item[i]] += sums[i];
    return absl::OkStatus();
  }

  const BackendScores& request_scores_;
  const float* const scores_;  // The same on the device.
  const BandEdges& edges_;
  const SelectionRule rule_;
  const bool first_token_first_;
  const std::shared_ptr<Device>& device_;
  const int64_t pairs_;
  const int64_t tokens_;
  const int64_t rows_;
  DeviceMemory keys_, values_, spare_keys_, spare_values_;  // uint32_t[pairs]
  DeviceMemory band_;                                       // uint8_t[pairs]
  DeviceMemory scratch_;
  uint64_t scratch_bytes_ = 0;
};

bool RanksPairs(SelectionRule rule) {
  return rule == SelectionRule::kExact || rule == SelectionRule::kKvpress ||
         rule == SelectionRule::kPerHead;
}

}  // namespace

absl::StatusOr<DeviceRanking> RankOnDevice(const RankRequest& request,
                                           const std::shared_ptr<Device>& device) {
  const ScoreShape& shape = request.scores->shape();
  DeviceRanking result;
  KVTIER_ASSIGN_OR_RETURN(result.scores, ScoresOnDevice(*request.scores, *device));
  result.counts.layers = shape.layers;
  result.counts.kv_heads = shape.kv_heads;
  result.counts.tokens = shape.tokens;
  BandAssignment on_host;
  if (!RanksPairs(request.rule) || shape.pairs() == 0) {
    KVTIER_ASSIGN_OR_RETURN(const ScoreTable table, request.scores->Read());
    KVTIER_ASSIGN_OR_RETURN(
        on_host, AssignBandsByRule(table, *request.edges, request.rule, request.system_prompt));
  }
  if (shape.pairs() == 0) {
    result.counts.thresholds = on_host.thresholds;
    result.counts.score_mass = on_host.score_mass;
    result.counts.rows.assign(shape.rows() * request.edges->size(), 0);
    result.starts.assign(result.counts.rows.size() + 1, 0);
    return result;
  }
  Ranker ranker(request, result.scores, device);
  KVTIER_RETURN_IF_ERROR(ranker.Allocate());
  KVTIER_RETURN_IF_ERROR(RanksPairs(request.rule) ? ranker.RankPairs(result)
                                                  : ranker.TakeBands(on_host, result));
  KVTIER_RETURN_IF_ERROR(ranker.Group(result));
  return result;
}

}  // namespace kvtier
