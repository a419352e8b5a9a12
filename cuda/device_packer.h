// Ranking and packing on a device (compressor/packer.h), bit for bit as on the host: one stable
// sort of all pairs by their scores gives the bands, another by head and band the positions, and a
// launch per segment writes its rows as the object stores them, which one copy brings to the host,
// through pinned memory, while the next segment is gathered.
//
// It takes the scores where they lie on the device (device_scores.h). Beside them, while it ranks,
// it takes kRankingPairBytes (device_ranking.h) of device memory per pair and a little; between
// that and the last segment kRankedPairBytes, and the sizes of the segments that are being filled.
// Whole heads (recipe head) are ranked on the host, which reads the scores for that.
#ifndef KVTIER_CUDA_DEVICE_PACKER_H_
#define KVTIER_CUDA_DEVICE_PACKER_H_

#include <memory>

#include "compressor/packer.h"
#include "cuda/device.h"

namespace kvtier {

std::unique_ptr<Packer> MakeDevicePacker(std::shared_ptr<Device> device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_PACKER_H_
