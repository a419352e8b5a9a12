// Ranking on a device and the sort under it, against the standard library and the host: of any
// size, for a device has other ways for many pairs than for few.
//
//   ExpectSortsStably(device, 100'000, 17);
//   ExpectRanksAsTheHost(device, RandomScoreTable(2, 4, 150'000), SelectionRule::kExact);
#ifndef KVTIER_TESTS_CONFORMANCE_DEVICE_RANKING_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_DEVICE_RANKING_CONFORMANCE_H_

#include <cstdint>
#include <memory>

#include "compressor/ranking.h"
#include "cuda/device.h"
#include "kvcache/selection.h"

namespace kvtier {

// Bits of keys that take a radix sort one pass to five, and end inside and between passes.
inline constexpr int kSortBits[] = {1, 8, 9, 10, 17, 32};

// Random keys below 2^bits, about three pairs of each.
void ExpectSortsStably(const std::shared_ptr<Device>& device, int64_t count, int bits);

// Log scores with ties.
ScoreTable RandomScoreTable(uint32_t layers, uint32_t kv_heads, uint64_t tokens);

// Bands, thresholds and the tokens of each row and band; masses up to rounding.
void ExpectRanksAsTheHost(const std::shared_ptr<Device>& device, const ScoreTable& scores,
                          SelectionRule rule);

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_DEVICE_RANKING_CONFORMANCE_H_
