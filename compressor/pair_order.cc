#include "compressor/pair_order.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

namespace kvtier {
namespace {

constexpr uint32_t kScoreBits = 16;
constexpr uint32_t kScoreMask = (1u << kScoreBits) - 1;
constexpr uint32_t kBandShift = kScoreBits + 1;
static_assert(kNoPlace == limits::kBandsMax << kBandShift);

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Place of a score among all fp16 numbers, the largest first; -0 is +0.
uint32_t ScorePlace(float16 score) {
  const uint32_t bits = score.bits == 0x8000u ? 0u : score.bits;
  const uint32_t ascending = (bits & 0x8000u) != 0 ? kScoreMask - bits : bits | 0x8000u;
  return kScoreMask - ascending;
}

// Log of the sum of exp(scores).
double LogSum(std::span<const double> scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - largest);
  return largest + std::log(sum);
}

// One order over all pairs, by counting.
std::vector<uint32_t> RankAll(const PairPlaces& places) {
  uint32_t end = 0;  // Of the places in use: one band of sixteen is common.
  for (const uint32_t place : places.of_pair) {
    if (place != kNoPlace) end = std::max(end, place + 1);
  }
  // How many pairs come before those with a given place; then, in flat order, the next of them.
  std::vector<uint32_t> next(end + 1);
  for (const uint32_t place : places.of_pair) {
    if (place != kNoPlace) ++next[place + 1];
  }
  for (size_t place = 1; place < next.size(); ++place) next[place] += next[place - 1];
  std::vector<uint32_t> ranks(places.of_pair.size(), kNoRank);
  for (size_t pair = 0; pair < ranks.size(); ++pair) {
    if (places.of_pair[pair] != kNoPlace) ranks[pair] = next[places.of_pair[pair]]++;
  }
  return ranks;
}

// Tokens of one head in order, those that are here.
std::vector<uint32_t> SortHead(const PairPlaces& places, uint64_t head) {
  const uint64_t begin = head * places.tokens;
  std::vector<uint32_t> order;
  for (uint64_t token = 0; token < places.tokens; ++token) {
    if (places.of_pair[begin + token] != kNoPlace) order.push_back(static_cast<uint32_t>(token));
  }
  std::ranges::stable_sort(order, {},
                           [&](uint32_t token) { return places.of_pair[begin + token]; });
  return order;
}

std::vector<uint32_t> RankHeads(const PairPlaces& places) {
  std::vector<uint32_t> ranks(places.of_pair.size(), kNoRank);
  for (uint64_t head = 0; head < places.heads(); ++head) {
    const std::vector<uint32_t> order = SortHead(places, head);
    for (size_t rank = 0; rank < order.size(); ++rank) {
      ranks[head * places.tokens + order[rank]] = static_cast<uint32_t>(rank);
    }
  }
  return ranks;
}

struct Slab {
  double log_score;
  uint64_t layer;
  uint64_t index;
};

// The whole slabs of one layer, whose heads' orders are `heads`, [kv_heads].
void AppendSlabs(const PairPlaces& places, uint64_t layer,
                 std::span<const std::vector<uint32_t>> heads, std::vector<Slab>& slabs) {
  uint64_t here = places.tokens;
  for (const std::vector<uint32_t>& order : heads) here = std::min<uint64_t>(here, order.size());
  std::vector<double> scores(places.kv_heads);
  double previous = kInfinity;
  for (uint64_t index = 0; index < here; ++index) {
    bool first_tokens = false;
    for (uint64_t head = 0; head < places.kv_heads; ++head) {
      const uint64_t row = layer * places.kv_heads + head;
      const uint32_t place = places.of_pair[row * places.tokens + heads[head][index]];
      scores[head] = ScoreOfPlace(place);
      first_tokens = IsFirstToken(place);  // Of one head, then of all: it is each one's best.
    }
    // Each head's rows fall, so slabs do; rounding must not turn that round. First tokens come
    // before their score.
    if (!first_tokens) previous = std::min(previous, LogSum(scores));
    slabs.push_back({first_tokens ? kInfinity : previous, layer, index});
  }
}

PairOrder OrderSlabs(const PairPlaces& places) {
  std::vector<Slab> slabs;
  std::vector<std::vector<uint32_t>> heads;  // [layers * kv_heads]
  for (uint64_t layer = 0; layer < places.layers; ++layer) {
    for (uint64_t head = 0; head < places.kv_heads; ++head) {
      heads.push_back(SortHead(places, layer * places.kv_heads + head));
    }
    AppendSlabs(places, layer, std::span(heads).last(places.kv_heads), slabs);
  }
  std::ranges::stable_sort(slabs, std::ranges::greater(), &Slab::log_score);

  PairOrder order = {.rule = SelectionRule::kPerLayer,
                     .ranks = std::vector<uint32_t>(places.of_pair.size(), kNoRank),
                     .slab_log_scores = {}};
  for (size_t rank = 0; rank < slabs.size(); ++rank) {
    for (uint64_t head = 0; head < places.kv_heads; ++head) {
      const uint64_t row = slabs[rank].layer * places.kv_heads + head;
      order.ranks[row * places.tokens + heads[row][slabs[rank].index]] =
          static_cast<uint32_t>(rank);
    }
    order.slab_log_scores.push_back(slabs[rank].log_score);
  }
  return order;
}

}  // namespace

uint32_t PlaceOf(uint32_t band, bool first_token, float16 score) {
  return (band << kBandShift) | (first_token ? 0u : 1u << kScoreBits) | ScorePlace(score);
}

uint32_t BandOfPlace(uint32_t place) { return place >> kBandShift; }

bool IsFirstToken(uint32_t place) { return (place & (1u << kScoreBits)) == 0; }

float ScoreOfPlace(uint32_t place) {
  const uint32_t ascending = kScoreMask - (place & kScoreMask);
  const uint32_t bits = (ascending & 0x8000u) != 0 ? ascending & 0x7FFFu : kScoreMask - ascending;
  return static_cast<float>(float16::FromBits(static_cast<uint16_t>(bits)));
}

PairOrder OrderPairs(const PairPlaces& places, SelectionRule rule) {
  switch (rule) {
    case SelectionRule::kExact:
    case SelectionRule::kKvpress:
    case SelectionRule::kWholeHeads:
      return {.rule = rule, .ranks = RankAll(places), .slab_log_scores = {}};
    case SelectionRule::kPerHead:
      return {.rule = rule, .ranks = RankHeads(places), .slab_log_scores = {}};
    case SelectionRule::kPerLayer:
      break;
  }
  return OrderSlabs(places);
}

}  // namespace kvtier
