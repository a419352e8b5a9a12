// The pairs of a context ranked on a device: what DevicePacker starts from.
#ifndef KVTIER_CUDA_DEVICE_RANKING_H_
#define KVTIER_CUDA_DEVICE_RANKING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/packer.h"
#include "cuda/device.h"

namespace kvtier {

// Device memory of each pair, the scores' included: while it is ranked (scores, keys and values
// twice, the band), and kept by a DeviceRanking.
inline constexpr uint64_t kRankingPairBytes = 21;
inline constexpr uint64_t kRankedPairBytes = 8;

struct DeviceRanking {
  BandCounts counts;
  DeviceMemory scores;  // float[pairs]
  // uint32_t[pairs]: the tokens of each row (a head of a scored layer) and band, ascending; those
  // of row r and band b from starts[r * bands + b] on.
  DeviceMemory tokens;
  std::vector<uint32_t> starts;  // [rows * bands + 1]
};

// Errors as Packer::Rank. INVALID_ARGUMENT also: 2^31 pairs or more.
// REQUIRES: the calling thread has entered the device.
absl::StatusOr<DeviceRanking> RankOnDevice(const RankRequest& request,
                                           const std::shared_ptr<Device>& device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_RANKING_H_
