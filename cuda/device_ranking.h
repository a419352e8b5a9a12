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

// Device memory of each pair beside its score: while it is ranked (keys and values twice, the
// band), and kept by a DeviceRanking (a token).
inline constexpr uint64_t kRankingPairBytes = 17;
inline constexpr uint64_t kRankedPairBytes = 4;

struct DeviceRanking {
  BandCounts counts;
  const float* scores = nullptr;  // float[pairs], of the request.
  // uint32_t[pairs]: the tokens of each row (a head of a scored layer) and band, ascending; those
  // of row r and band b from starts[r * bands + b] on.
  DeviceMemory tokens;
  std::vector<uint32_t> starts;  // [rows * bands + 1]
};

// Errors as Packer::Rank. INVALID_ARGUMENT also: scores of another device.
// REQUIRES: the calling thread has entered the device.
absl::StatusOr<DeviceRanking> RankOnDevice(const RankRequest& request,
                                           const std::shared_ptr<Device>& device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_RANKING_H_
