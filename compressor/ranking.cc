#include "compressor/ranking.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Order-preserving map of scores to integers: a larger score has a larger key.
uint32_t SortKey(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes +0: they are equal.
  return (bits >> 31) != 0 ? ~bits : bits | 0x8000'0000u;
}
constexpr uint32_t kFirstTokenKey = 0xFFFF'FFFFu;  // Above the key of every number.

// Calls visit(flat index, key) for every pair, in the order that breaks ties.
template <typename Visit>
void ForEachKey(const ScoreTable& scores, bool first_token_first, Visit visit) {
  for (uint64_t begin = 0; begin < scores.pairs(); begin += scores.tokens) {
    uint64_t i = begin;
    if (first_token_first) visit(i++, kFirstTokenKey);
    for (; i < begin + scores.tokens; ++i) visit(i, SortKey(scores.log_scores[i]));
  }
}

// Where one band ends in the total order: after the pairs whose key is above `key`, and after the
// first `ties` of the pairs with that very key.
struct Cut {
  uint32_t key = 0;
  uint64_t ties = 0;
};

// Finds, for each rank_end > 0 (ascending), the key of the pair at rank_end - 1. Keys are read as
// three digits, most significant first. Each digit costs one pass over the scores, which counts the
// next digit of those keys that share their leading digits with a wanted pair: a trie of at most
// rank_ends.size() nodes per level.
class RadixSelect {
 public:
  RadixSelect(const ScoreTable& scores, bool first_token_first)
      : scores_(scores), first_token_first_(first_token_first) {}

  std::vector<Cut> Find(const std::vector<uint64_t>& rank_ends) {
    std::vector<Wanted> wanted;
    for (uint64_t rank_end : rank_ends) wanted.push_back({.rank = rank_end - 1});
    std::vector<uint32_t> prefixes = {0};  // Leading digits of each node of this level, ascending.
    for (const Digit& digit : kDigits) {
      const std::vector<uint64_t> counts = Count(prefixes, digit);
      for (Wanted& w : wanted) Descend(prefixes, counts, digit, w);
      prefixes.clear();
      for (const Wanted& w : wanted) prefixes.push_back(w.prefix);
      std::sort(prefixes.begin(), prefixes.end());
      prefixes.erase(std::unique(prefixes.begin(), prefixes.end()), prefixes.end());
    }
    std::vector<Cut> cuts;
    for (const Wanted& w : wanted) cuts.push_back({.key = w.prefix, .ties = w.rank + 1});
    return cuts;
  }

 private:
  struct Digit {
    uint32_t shift;
    uint32_t bits;
    uint32_t Of(uint32_t key) const { return (key >> shift) & ((1u << bits) - 1); }
    uint32_t PrefixOf(uint32_t key) const { return shift + bits == 32 ? 0 : key >> (shift + bits); }
  };
  static constexpr std::array<Digit, 3> kDigits = {{{21, 11}, {10, 11}, {0, 10}}};

  struct Wanted {
    uint64_t rank = 0;    // Among the pairs that share `prefix`, largest key first.
    uint32_t prefix = 0;  // The digits found so far.
  };

  // [prefixes.size(), 1 << digit.bits]
  std::vector<uint64_t> Count(const std::vector<uint32_t>& prefixes, const Digit& digit) const {
    std::vector<uint64_t> counts(prefixes.size() << digit.bits);
    ForEachKey(scores_, first_token_first_, [&](uint64_t, uint32_t key) {
      const uint32_t prefix = digit.PrefixOf(key);
      // At most 16 entries, in one or two cache lines.
      for (size_t node = 0; node < prefixes.size(); ++node) {
        if (prefixes[node] == prefix) {
          ++counts[(node << digit.bits) + digit.Of(key)];
          return;
        }
      }
    });
    return counts;
  }

  static void Descend(const std::vector<uint32_t>& prefixes, const std::vector<uint64_t>& counts,
                      const Digit& digit, Wanted& wanted) {
    const size_t node =
        std::lower_bound(prefixes.begin(), prefixes.end(), wanted.prefix) - prefixes.begin();
    uint32_t value = (1u << digit.bits) - 1;
    while (wanted.rank >= counts[(node << digit.bits) + value]) {
      wanted.rank -= counts[(node << digit.bits) + value];
      --value;
    }
    wanted.prefix = (wanted.prefix << digit.bits) | value;
  }

  const ScoreTable& scores_;
  const bool first_token_first_;
};

}  // namespace

absl::Status CheckRankEnds(std::span<const uint64_t> rank_ends, uint64_t pairs) {
  if (!rank_ends.empty() && rank_ends.size() <= limits::kBandsMax && rank_ends.back() == pairs &&
      std::is_sorted(rank_ends.begin(), rank_ends.end())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("rank ends ", absl::StrJoin(rank_ends, ", "),
                                                 " do not ascend to ", pairs, " pairs in at most ",
                                                 limits::kBandsMax, " bands"));
}

absl::Status CheckScores(const ScoreTable& scores) {
  if (scores.pairs() != uint64_t{scores.layers} * scores.kv_heads * scores.tokens) {
    return absl::InvalidArgumentError(absl::StrCat("score table: ", scores.pairs(), " scores for ",
                                                   scores.layers, " layers x ", scores.kv_heads,
                                                   " heads x ", scores.tokens, " tokens"));
  }
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    const float score = scores.log_scores[i];
    if (!std::isnan(score) && score != kInfinity) continue;
    const uint64_t row = i / scores.tokens;
    return absl::InvalidArgumentError(absl::StrCat("score of layer ", row / scores.kv_heads,
                                                   ", head ", row % scores.kv_heads, ", token ",
                                                   i % scores.tokens, " is ", score));
  }
  return absl::OkStatus();
}

absl::StatusOr<BandAssignment> AssignBands(const ScoreTable& scores, const BandEdges& edges,
                                           bool first_token_first) {
  std::vector<uint64_t> rank_ends;
  for (const Ratio edge : edges.edges()) rank_ends.push_back(edge.Of(scores.pairs()));
  return AssignBandsAt(scores, rank_ends, first_token_first);
}

absl::StatusOr<BandAssignment> AssignBandsAt(const ScoreTable& scores,
                                             std::span<const uint64_t> all_rank_ends,
                                             bool first_token_first) {
  KVTIER_RETURN_IF_ERROR(CheckScores(scores));
  const uint64_t pairs = scores.pairs();
  KVTIER_RETURN_IF_ERROR(CheckRankEnds(all_rank_ends, pairs));
  BandAssignment result;
  result.band.resize(pairs);
  result.thresholds.assign(all_rank_ends.size(), kInfinity);
  result.score_mass.assign(all_rank_ends.size(), 0.0);

  // Bands that rank nothing take no part; the last of the others takes what no cut claims.
  std::vector<uint8_t> bands;
  std::vector<uint64_t> rank_ends;
  for (size_t b = 0; b < all_rank_ends.size(); ++b) {
    if (all_rank_ends[b] == (b == 0 ? 0 : all_rank_ends[b - 1])) continue;
    bands.push_back(static_cast<uint8_t>(b));
    rank_ends.push_back(all_rank_ends[b]);
  }
  if (bands.empty()) return result;
  std::vector<Cut> cuts = RadixSelect(scores, first_token_first).Find(rank_ends);

  // Ties are handed out in flat order. Cuts with the same key lie next to each other; they share
  // one count of the pairs seen with that key, kept at the first of them.
  std::vector<uint64_t> ties_seen(cuts.size());
  ForEachKey(scores, first_token_first, [&](uint64_t i, uint32_t key) {
    size_t c = 0;
    while (key < cuts[c].key) ++c;  // The last cut's key is the smallest of all.
    if (key == cuts[c].key) {
      const uint64_t tie = ties_seen[c]++;
      while (key == cuts[c].key && tie >= cuts[c].ties) ++c;  // The last cut takes all of its ties.
    }
    const uint8_t band = bands[c];
    result.band[i] = band;
    result.score_mass[band] += std::exp(double{scores.log_scores[i]});
    // The last pair of a band has the smallest key and, of these, the highest index.
    if (key == cuts[c].key) result.thresholds[band] = scores.log_scores[i];
  });
  return result;
}

absl::StatusOr<BandAssignment> AssignBandsReference(const ScoreTable& scores,
                                                    const BandEdges& edges,
                                                    bool first_token_first) {
  KVTIER_RETURN_IF_ERROR(CheckScores(scores));
  const uint64_t pairs = scores.pairs();
  std::vector<uint64_t> order(pairs);
  std::iota(order.begin(), order.end(), uint64_t{0});
  std::sort(order.begin(), order.end(), [&](uint64_t a, uint64_t b) {
    const bool a_first = first_token_first && a % scores.tokens == 0;
    const bool b_first = first_token_first && b % scores.tokens == 0;
    if (a_first != b_first) return a_first;
    if (!a_first && scores.log_scores[a] != scores.log_scores[b]) {
      return scores.log_scores[a] > scores.log_scores[b];
    }
    return a < b;
  });
  BandAssignment result;
  result.band.resize(pairs);
  result.thresholds.assign(edges.size(), kInfinity);
  result.score_mass.assign(edges.size(), 0.0);
  for (uint64_t rank = 0; rank < pairs; ++rank) {
    const uint32_t band = edges.BandOfRank(rank, pairs).value();
    const float score = scores.log_scores[order[rank]];
    result.band[order[rank]] = static_cast<uint8_t>(band);
    result.thresholds[band] = score;
    result.score_mass[band] += std::exp(double{score});
  }
  return result;
}

}  // namespace kvtier
