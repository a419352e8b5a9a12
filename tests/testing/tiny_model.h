// A tiny Llama checkpoint with random weights, for tests that need some model and not a good one.
#ifndef KVTIER_TESTS_TESTING_TINY_MODEL_H_
#define KVTIER_TESTS_TESTING_TINY_MODEL_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kvcache/geometry.h"

namespace kvtier {

struct TinyModelOptions {
  int64_t hidden = 32;
  int64_t layers = 2;
  int64_t q_heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 32;
  int64_t intermediate = 48;
  int64_t vocabulary = 264;  // Bytes and a few more: the profile has a byte vocabulary.
  int64_t positions_max = 4096;
  double rope_theta = 10000.0;
  bool tied_embeddings = false;
  DType dtype = DType::kBf16;  // kBf16 or kF32
  uint32_t chunk_tokens = 64;  // m of the prompt profile: several chunks in a short context
  uint32_t prefix_tokens = 3;  // Of the default system prompt; 0: none.
  uint64_t seed = 1;
};

// Writes config.json, model.safetensors and kvtier_prompt_profile.json to `folder`, which is made
// if it is not there, and returns `folder`. Equal options give equal bytes. The attention is peaked
// enough (weights of standard deviation ~ 2 / sqrt(in)) for scores to differ by orders of
// magnitude. UNAVAILABLE: the file system refused.
absl::StatusOr<std::string> WriteTinyModel(const TinyModelOptions& options,
                                           const std::string& folder);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_TINY_MODEL_H_
