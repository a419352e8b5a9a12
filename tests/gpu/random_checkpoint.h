// A checkpoint of any size with random weights from a seed, for measurements of whole models: what
// it computes means nothing, how long that takes does.
#ifndef KVTIER_TESTS_GPU_RANDOM_CHECKPOINT_H_
#define KVTIER_TESTS_GPU_RANDOM_CHECKPOINT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace kvtier {

struct RandomCheckpointOptions {
  bool qwen2 = false;  // Its family; otherwise Llama's.
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate = 0;
  int64_t vocabulary = 0;
  int64_t positions_max = 0;
  uint32_t chunk_tokens = 2000;
  uint64_t seed = 1;
};

// Writes config.json, kvtier_prompt_profile.json and model.safetensors (bf16) to `folder`, which is
// there. In memory it needs the largest tensor: all are views of one piece of random numbers, each
// beginning elsewhere. UNAVAILABLE: the file system refused.
absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options,
                                   const std::string& folder);

}  // namespace kvtier

#endif  // KVTIER_TESTS_GPU_RANDOM_CHECKPOINT_H_
