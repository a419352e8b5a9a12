#include "tests/gpu/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/safetensors.h"
#include "compressor/safetensors_writer.h"

namespace kvtier {
namespace {

// Random numbers before they repeat, and how far apart two tensors begin in them.
constexpr int64_t kDistinct = int64_t{1} << 22;
constexpr int64_t kApart = 4099;

using Entries = std::map<std::string, SafetensorsEntry>;

class Weights {
 public:
  // `elements_max`: of the largest tensor. Of standard deviation 1 / sqrt(hidden), so that a
  // product keeps the size of what is normed.
  Weights(const RandomCheckpointOptions& o, int64_t elements_max)
      : random_(elements_max + kDistinct), ones_(o.hidden, bfloat16(1.0f)) {
    std::mt19937_64 random(o.seed);
    const float size = std::sqrt(3.0f / static_cast<float>(o.hidden));
    std::uniform_real_distribution<float> uniform(-size, size);
    const auto distinct = random_.begin() + std::min<int64_t>(kDistinct, random_.size());
    std::generate(random_.begin(), distinct, [&] { return bfloat16(uniform(random)); });
    for (auto to = distinct; to != random_.end();) {
      to = std::copy_n(random_.begin(), std::min(distinct - random_.begin(), random_.end() - to),
                       to);
    }
  }

  void Add(const std::string& name, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    const int64_t at = kApart * static_cast<int64_t>(entries_.size()) % kDistinct;
    AddEntry(name, std::move(shape), std::span(random_).subspan(at, count));
  }
  void AddNorm(const std::string& name) {
    AddEntry(name, {static_cast<int64_t>(ones_.size())}, ones_);
  }
  const Entries& entries() const { return entries_; }

 private:
  void AddEntry(const std::string& name, std::vector<int64_t> shape,
                std::span<const bfloat16> elements) {
    entries_[name] = {.dtype = "BF16", .shape = std::move(shape), .bytes = std::as_bytes(elements)};
  }

  std::vector<bfloat16> random_;
  std::vector<bfloat16> ones_;
  Entries entries_;
};

absl::Status WriteText(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text << std::flush;
  if (out) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path.string(), ": cannot be written"));
}

std::string ConfigJson(const RandomCheckpointOptions& o) {
  return absl::StrCat(
      "{\"architectures\": [\"", o.qwen2 ? "Qwen2" : "Llama", "ForCausalLM\"], \"model_type\": \"",
      o.qwen2 ? "qwen2" : "llama", "\", \"hidden_size\": ", o.hidden,
      ", \"num_hidden_layers\": ", o.layers, ", \"num_attention_heads\": ", o.q_heads,
      ", \"num_key_value_heads\": ", o.kv_heads, ", \"head_dim\": ", o.head_dim,
      ", \"intermediate_size\": ", o.intermediate, ", \"vocab_size\": ", o.vocabulary,
      ", \"max_position_embeddings\": ", o.positions_max,
      ", \"rope_theta\": 1000000.0, \"rms_norm_eps\": 1e-05, \"hidden_act\": \"silu\", ",
      "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}\n");
}

// Repeat prompts of about the length of real ones.
std::string ProfileJson(const RandomCheckpointOptions& o) {
  const auto list = [&o](int count) {
    std::string text = "[";
    for (int i = 0; i < count; ++i) absl::StrAppend(&text, i == 0 ? "" : ", ", i % o.vocabulary);
    return text + "]";
  };
  return absl::StrCat("{\"version\": 1, \"name\": \"random\", \"prefix\": ", list(3),
                      ", \"postfix\": ", list(4), ", \"first_prompt\": ", list(12),
                      ", \"later_prompt\": ", list(20), ", \"query_prefix\": ", list(2),
                      ", \"hint_tokens\": 8, \"chunk_tokens\": ", o.chunk_tokens, "}\n");
}

}  // namespace

absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& o, const std::string& folder) {
  const std::filesystem::path root(folder);
  KVTIER_RETURN_IF_ERROR(WriteText(root / "config.json", ConfigJson(o)));
  KVTIER_RETURN_IF_ERROR(WriteText(root / "kvtier_prompt_profile.json", ProfileJson(o)));
  const int64_t q_width = o.q_heads * o.head_dim;
  const int64_t kv_width = o.kv_heads * o.head_dim;
  Weights weights(o, o.hidden * std::max({o.vocabulary, o.intermediate, q_width}));
  weights.Add("model.embed_tokens.weight", {o.vocabulary, o.hidden});
  weights.Add("lm_head.weight", {o.vocabulary, o.hidden});
  weights.AddNorm("model.norm.weight");
  for (int64_t layer = 0; layer < o.layers; ++layer) {
    const std::string at = absl::StrCat("model.layers.", layer, ".");
    weights.AddNorm(at + "input_layernorm.weight");
    weights.AddNorm(at + "post_attention_layernorm.weight");
    weights.Add(at + "self_attn.q_proj.weight", {q_width, o.hidden});
    weights.Add(at + "self_attn.k_proj.weight", {kv_width, o.hidden});
    weights.Add(at + "self_attn.v_proj.weight", {kv_width, o.hidden});
    weights.Add(at + "self_attn.o_proj.weight", {o.hidden, q_width});
    if (o.qwen2) {
      weights.Add(at + "self_attn.q_proj.bias", {q_width});
      weights.Add(at + "self_attn.k_proj.bias", {kv_width});
      weights.Add(at + "self_attn.v_proj.bias", {kv_width});
    }
    weights.Add(at + "mlp.gate_proj.weight", {o.intermediate, o.hidden});
    weights.Add(at + "mlp.up_proj.weight", {o.intermediate, o.hidden});
    weights.Add(at + "mlp.down_proj.weight", {o.hidden, o.intermediate});
  }
  return WriteSafetensors((root / "model.safetensors").string(), weights.entries());
}

}  // namespace kvtier
