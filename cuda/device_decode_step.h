// DecodeSteps (compressor/decode_step.h) over a Device. The changing inputs of a step are 24 bytes
// of device memory; plans of attention hold for 256 lengths of the tail (cuda/prepared_rows.h). In
// each such range the first step is launched, the second is captured and replayed, and all others
// replay it; where a capture fails, steps go on being launched. So a question of one step pays for
// no capture, and the capture of a step takes the place of its launches.
#ifndef KVTIER_CUDA_DEVICE_DECODE_STEP_H_
#define KVTIER_CUDA_DEVICE_DECODE_STEP_H_

#include <memory>

#include "compressor/decode_step.h"
#include "cuda/device.h"
#include "cuda/gemm.h"

namespace kvtier {

// A step has device memory of its own: its state, what one launch of attention leaves for its
// merge, and the workspace of its products, the latter two when they are first needed. `gemm`
// outlives the result, of the backend whose activations are `activations`.
std::unique_ptr<DecodeSteps> MakeDeviceDecodeSteps(std::shared_ptr<Device> device, Gemm& gemm,
                                                   DType activations);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_DECODE_STEP_H_
