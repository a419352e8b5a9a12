// A checkpoint folder, loaded onto a backend: configuration, prompt profile, weights.
//   ASSIGN(auto model, Model::Load("tests/fixtures/model", backend))
#ifndef KVTIER_COMPRESSOR_MODEL_H_
#define KVTIER_COMPRESSOR_MODEL_H_

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "compressor/model_config.h"
#include "compressor/prompt_profile.h"
#include "kvcache/ids.h"

namespace kvtier {

// Norms are fp32, biases as activations; those that a family does not have are empty (rows() == 0).
struct LayerWeights {
  Tensor attention_norm;          // [1, hidden]
  Tensor mlp_norm;                // [1, hidden]
  Tensor attention_out_norm;      // [1, hidden]
  Tensor mlp_out_norm;            // [1, hidden]
  Tensor q_norm, k_norm;          // [1, head_dim], of every head before RoPE
  Tensor q_bias, k_bias, v_bias;  // [1, heads * head_dim]
  std::unique_ptr<LinearWeights> q, k, v, o;
  std::unique_ptr<LinearWeights> gate, up, down;
};

// Immutable after Load; any number of threads may run forward passes over it. Does not own the
// backend, which must outlive it.
class Model {
 public:
  // Reads config.json, kvtier_prompt_profile.json and the weight files (checkpoint.h) of `folder`.
  // NOT_FOUND: no such folder or file. INVALID_ARGUMENT / UNIMPLEMENTED as the parsers say, or a
  // tensor that is missing, unexpected, of the wrong shape or dtype or not finite (named).
  static absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& folder, Backend& backend);

  const std::string& name() const { return name_; }  // The folder's last component.
  const ModelConfig& config() const { return config_; }
  const PromptProfile& profile() const { return profile_; }
  const RopeTable& rope(int64_t layer) const {
    return config_.layer_window(layer) > 0 ? sliding_rope_ : rope_;
  }
  // SHA-256 over config.json and every weight file, in this order: for each its name and its bytes,
  // both preceded by their length (u64, little endian).
  const Digest& digest() const { return digest_; }
  Backend& backend() const { return *backend_; }

  // [vocabulary, hidden], of the checkpoint's dtype. The final norm is [1, hidden] fp32.
  TensorView embedding() const { return embedding_; }
  const LayerWeights& layer(int64_t index) const { return layers_[index]; }
  TensorView final_norm() const { return final_norm_; }
  const LinearWeights& lm_head() const { return *lm_head_; }
  uint64_t weight_bytes() const { return weight_bytes_; }
  // Context tokens that Prefill has run through this model since it was loaded. A worker reports
  // it, to show that it never recomputes what the store serves.
  uint64_t prefilled_tokens() const { return prefilled_tokens_.load(std::memory_order_relaxed); }
  void CountPrefilled(uint64_t tokens) const {
    prefilled_tokens_.fetch_add(tokens, std::memory_order_relaxed);
  }

 private:
  Model() = default;
  std::string name_;
  ModelConfig config_;
  PromptProfile profile_;
  Digest digest_;
  RopeTable rope_;
  RopeTable sliding_rope_;
  Backend* backend_ = nullptr;
  Tensor embedding_;
  std::vector<LayerWeights> layers_;
  Tensor final_norm_;
  std::unique_ptr<LinearWeights> lm_head_;
  uint64_t weight_bytes_ = 0;
  mutable std::atomic<uint64_t> prefilled_tokens_{0};
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_MODEL_H_
