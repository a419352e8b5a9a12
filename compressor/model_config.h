// What config.json says, as the numbers the forward pass needs. Keys that would change the
// computation and are not implemented are refused by name: never a silently wrong number.
#ifndef KVTIER_COMPRESSOR_MODEL_CONFIG_H_
#define KVTIER_COMPRESSOR_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/backend.h"
#include "compressor/rope.h"
#include "kvcache/geometry.h"

namespace kvtier {

// Llama 3.x, Qwen2.5, Qwen3, the text model of Gemma 3. docs/models.md says what each one has.
enum class ModelFamily { kLlama, kQwen2, kQwen3, kGemma3 };
absl::string_view ModelFamilyName(ModelFamily family);  // "llama", "qwen2", ...

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
  bool tied_embeddings = false;
  // The configuration is one part of a model for text and images, and so are its tensors.
  bool multimodal = false;
  double softmax_dimension = 0;        // Logits are divided by its square root.
  std::vector<LayerKind> layer_kinds;  // [layers]; at least one is global.
  int64_t window = 0;                  // Of sliding layers, own row included; 0 without any.
  RopeSpec rope;                       // Of global layers.
  RopeSpec sliding_rope;               // Of sliding layers.

  // Reads what transformers 4 or 5 wrote.
  // INVALID_ARGUMENT naming the key: malformed, out of limits. UNIMPLEMENTED naming the key and its
  // value: an architecture, activation, rope scaling, bias, quantisation, ... that is not built.
  static absl::StatusOr<ModelConfig> Parse(absl::string_view config_json);

  // What the family has.
  bool has_qkv_bias() const { return family == ModelFamily::kQwen2; }
  bool has_qk_norm() const {
    return family == ModelFamily::kQwen3 || family == ModelFamily::kGemma3;
  }
  // Norms behind attention and MLP, besides those before them.
  bool has_output_norms() const { return family == ModelFamily::kGemma3; }
  // Added to every norm weight of the checkpoint.
  float norm_weight_offset() const { return family == ModelFamily::kGemma3 ? 1.0f : 0.0f; }
  Activation activation() const {
    return family == ModelFamily::kGemma3 ? Activation::kGeluTanh : Activation::kSilu;
  }
  // Multiplies embeddings on their way in, not in a tied LM head.
  float embedding_scale() const;
  float softmax_scale() const;
  int64_t layer_window(int64_t layer) const {
    return layer_kinds[static_cast<size_t>(layer)] == LayerKind::kSliding ? window : 0;
  }

  RopeTable MakeRopeTable(LayerKind kind) const;
  // Canonical text of every RoPE parameter, for the key.
  std::string RopeFingerprint() const;
  Geometry MakeGeometry(DType kv_dtype) const;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_MODEL_CONFIG_H_
