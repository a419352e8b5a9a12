// BackendScores (compressor/backend_scores.h) in a device's memory: written by the launches of the
// scoring pass, looked at by one, and ranked and packed where they lie.
#ifndef KVTIER_CUDA_DEVICE_SCORES_H_
#define KVTIER_CUDA_DEVICE_SCORES_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compressor/backend_scores.h"
#include "cuda/device.h"

namespace kvtier {

// 4 bytes a pair. Inspect() waits for one launch and reads its two words; Read() copies everything.
// RESOURCE_EXHAUSTED: no memory. INVALID_ARGUMENT: 2^31 pairs or more, which no kernel here counts.
absl::StatusOr<std::unique_ptr<BackendScores>> MakeDeviceScores(std::shared_ptr<Device> device,
                                                                const ScoreShape& shape);

// Where `scores` lie on the device. INVALID_ARGUMENT: they are another backend's.
absl::StatusOr<const float*> ScoresOnDevice(const BackendScores& scores, const Device& device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_SCORES_H_
