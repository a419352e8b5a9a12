#include "tests/testing/tiny_model.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/safetensors.h"
#include "compressor/safetensors_writer.h"

namespace kvtier {
namespace {

// std::normal_distribution differs between libraries; twelve uniform numbers do not.
float Normal(std::mt19937_64& random) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += double(random() >> 11) * 0x1p-53;
  return static_cast<float>(sum);
}

class Weights {
 public:
  explicit Weights(const TinyModelOptions& options)
      : dtype_(options.dtype), random_(options.seed) {}

  void Add(const std::string& name, std::vector<int64_t> shape, float mean, float deviation) {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    std::string& bytes = bytes_[name];
    ByteWriter writer(&bytes);
    for (int64_t i = 0; i < count; ++i) {
      const float value = mean + deviation * Normal(random_);
      if (dtype_ == DType::kF32) {
        writer.WriteF32(value);
      } else {
        writer.WriteU16(bfloat16(value).bits);
      }
    }
    entries_[name] = {.dtype = dtype_ == DType::kF32 ? "F32" : "BF16",
                      .shape = std::move(shape),
                      .bytes = AsBytes(bytes)};
  }
  void AddLinear(const std::string& name, int64_t out, int64_t in, float gain) {
    Add(name, {out, in}, 0, gain / std::sqrt(static_cast<float>(in)));
  }

  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }

 private:
  const DType dtype_;
  std::mt19937_64 random_;
  std::map<std::string, std::string> bytes_;
  std::map<std::string, SafetensorsEntry> entries_;
};

absl::Status WriteText(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.flush();
  if (!out) return absl::UnavailableError(absl::StrCat(path.string(), ": cannot be written"));
  return absl::OkStatus();
}

std::string ConfigJson(const TinyModelOptions& o) {
  return absl::StrCat(
      "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": ",
      o.hidden, ", \"num_hidden_layers\": ", o.layers, ", \"num_attention_heads\": ", o.q_heads,
      ", \"num_key_value_heads\": ", o.kv_heads, ", \"head_dim\": ", o.head_dim,
      ", \"intermediate_size\": ", o.intermediate, ", \"vocab_size\": ", o.vocabulary,
      ", \"max_position_embeddings\": ", o.positions_max, ", \"rope_theta\": ", o.rope_theta,
      ", \"rope_scaling\": null, \"rms_norm_eps\": 1e-05, \"hidden_act\": \"silu\", ",
      "\"tie_word_embeddings\": ", o.tied_embeddings ? "true" : "false",
      ", \"attention_bias\": false, \"mlp_bias\": false, \"torch_dtype\": \"",
      o.dtype == DType::kF32 ? "float32" : "bfloat16", "\"}\n");
}

std::string ProfileJson(const TinyModelOptions& o) {
  const auto list = [&o](uint32_t first, uint32_t count) {
    std::vector<uint32_t> ids;
    for (uint32_t i = 0; i < count; ++i) ids.push_back((first + i) % o.vocabulary);
    return absl::StrCat("[", absl::StrJoin(ids, ", "), "]");
  };
  return absl::StrCat(
      "{\"version\": 1, \"name\": \"tiny\", \"prefix\": ", list(257, o.prefix_tokens),
      ", \"postfix\": ", list(260, 1), ", \"first_prompt\": ", list(10, 2),
      ", \"later_prompt\": ", list(13, 3), ", \"query_prefix\": ", list(10, 1),
      ", \"hint_tokens\": 8, \"chunk_tokens\": ", o.chunk_tokens,
      o.vocabulary >= 256 ? ", \"byte_vocabulary\": {\"first_id\": 0}" : "", "}\n");
}

}  // namespace

absl::StatusOr<std::string> WriteTinyModel(const TinyModelOptions& o, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::UnavailableError(absl::StrCat(folder, ": ", error.message()));
  const std::filesystem::path root(folder);

  Weights weights(o);
  weights.Add("model.embed_tokens.weight", {o.vocabulary, o.hidden}, 0, 1);
  weights.Add("model.norm.weight", {o.hidden}, 1, 0.1f);
  if (!o.tied_embeddings) weights.AddLinear("lm_head.weight", o.vocabulary, o.hidden, 2);
  for (int64_t layer = 0; layer < o.layers; ++layer) {
    const std::string at = absl::StrCat("model.layers.", layer, ".");
    weights.Add(at + "input_layernorm.weight", {o.hidden}, 1, 0.1f);
    weights.Add(at + "post_attention_layernorm.weight", {o.hidden}, 1, 0.1f);
    weights.AddLinear(at + "self_attn.q_proj.weight", o.q_heads * o.head_dim, o.hidden, 1.5f);
    weights.AddLinear(at + "self_attn.k_proj.weight", o.kv_heads * o.head_dim, o.hidden, 1.5f);
    weights.AddLinear(at + "self_attn.v_proj.weight", o.kv_heads * o.head_dim, o.hidden, 1);
    weights.AddLinear(at + "self_attn.o_proj.weight", o.hidden, o.q_heads * o.head_dim, 1);
    weights.AddLinear(at + "mlp.gate_proj.weight", o.intermediate, o.hidden, 1);
    weights.AddLinear(at + "mlp.up_proj.weight", o.intermediate, o.hidden, 1);
    weights.AddLinear(at + "mlp.down_proj.weight", o.hidden, o.intermediate, 1);
  }
  KVTIER_RETURN_IF_ERROR(
      WriteSafetensors((root / "model.safetensors").string(), weights.entries()));
  KVTIER_RETURN_IF_ERROR(WriteText(root / "config.json", ConfigJson(o)));
  KVTIER_RETURN_IF_ERROR(WriteText(root / "kvtier_prompt_profile.json", ProfileJson(o)));
  return folder;
}

}  // namespace kvtier
