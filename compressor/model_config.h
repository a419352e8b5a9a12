// What config.json says, as the numbers the forward pass needs. Keys that would change the
// computation and are not implemented are refused by name: never a silently wrong number.
#ifndef KVTIER_COMPRESSOR_MODEL_CONFIG_H_
#define KVTIER_COMPRESSOR_MODEL_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/backend.h"
#include "kvcache/geometry.h"

namespace kvtier {

enum class ModelFamily { kLlama };

struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate = 0;
  int64_t vocabulary = 0;
  int64_t positions_max = 0;
  float rms_epsilon = 1e-5f;
  double rope_theta = 10000.0;
  bool tied_embeddings = false;

  // INVALID_ARGUMENT naming the key: malformed, out of limits. UNIMPLEMENTED naming the key and its
  // value: an architecture, activation, rope scaling, bias, quantisation, ... that is not built.
  static absl::StatusOr<ModelConfig> Parse(absl::string_view config_json);

  float softmax_scale() const;
  RopeTable MakeRopeTable() const;
  // Canonical text of every RoPE parameter, for the key.
  std::string RopeFingerprint() const;
  Geometry MakeGeometry(DType kv_dtype) const;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_MODEL_CONFIG_H_
