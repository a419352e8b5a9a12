// From the arguments of Backend to launches: attention and scores over spans of rows.
#ifndef KVTIER_CUDA_DEVICE_ATTENTION_H_
#define KVTIER_CUDA_DEVICE_ATTENTION_H_

#include <memory>

#include "absl/status/status.h"
#include "compressor/backend.h"
#include "cuda/device.h"
#include "cuda/fused_attention.h"

namespace kvtier {

// As Backend::Attention and Backend::ScoreColumnMax. REQUIRES: arguments that CheckedBackend has
// checked; Device::Enter() on this thread. What `fused`, which may be null, takes of the attention
// (cuda/fused_calls.h) it computes, the kernels of this folder the rest.
absl::Status RunDeviceAttention(const AttentionArgs& args, const std::shared_ptr<Device>& device,
                                FusedAttention* fused);
absl::Status RunDeviceScore(const ScoreArgs& args, const std::shared_ptr<Device>& device);

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_ATTENTION_H_
