#include "bench/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/status_macros.h"

namespace kvtier::bench {
namespace {

struct Shape {
  absl::string_view name;
  int64_t layers, hidden, q_heads, kv_heads, head_dim, intermediate, vocabulary, positions, chunk;
};
constexpr Shape kShapes[] = {
    {"qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936, 32768, 2000},
    {"two-layers", 2, 256, 8, 4, 64, 512, 260, 65536, 2000},
    {"tiny", 2, 64, 4, 2, 32, 96, 260, 8192, 100},
};

// Uniform weights of this standard deviation, or all of one value.
struct TensorPlan {
  std::string name;
  std::vector<int64_t> shape;
  float deviation = 0;
  float constant = 0;
  int64_t elements() const {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    return count;
  }
};

std::vector<TensorPlan> PlanTensors(const Shape& s) {
  std::vector<TensorPlan> plan;
  const auto linear = [&plan](const std::string& name, int64_t out, int64_t in, float gain) {
    plan.push_back({name, {out, in}, gain / std::sqrt(static_cast<float>(in)), 0});
  };
  const auto norm = [&](const std::string& name) { plan.push_back({name, {s.hidden}, 0, 1}); };
  plan.push_back({"model.embed_tokens.weight", {s.vocabulary, s.hidden}, 1, 0});
  norm("model.norm.weight");
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    const std::string at = absl::StrCat("model.layers.", layer, ".");
    const int64_t q_width = s.q_heads * s.head_dim;
    const int64_t kv_width = s.kv_heads * s.head_dim;
    norm(at + "input_layernorm.weight");
    norm(at + "post_attention_layernorm.weight");
    linear(at + "self_attn.q_proj.weight", q_width, s.hidden, 1.5f);
    linear(at + "self_attn.k_proj.weight", kv_width, s.hidden, 1.5f);
    linear(at + "self_attn.v_proj.weight", kv_width, s.hidden, 1);
    linear(at + "self_attn.o_proj.weight", s.hidden, q_width, 1);
    plan.push_back({at + "self_attn.q_proj.bias", {q_width}, 0.1f, 0});
    plan.push_back({at + "self_attn.k_proj.bias", {kv_width}, 0.1f, 0});
    plan.push_back({at + "self_attn.v_proj.bias", {kv_width}, 0.1f, 0});
    linear(at + "mlp.gate_proj.weight", s.intermediate, s.hidden, 1);
    linear(at + "mlp.up_proj.weight", s.intermediate, s.hidden, 1);
    linear(at + "mlp.down_proj.weight", s.hidden, s.intermediate, 1);
  }
  return plan;
}

// The values of one tensor, block by block.
void WriteElements(const TensorPlan& tensor, std::mt19937_64& random, std::ostream& out) {
  // Every 16-bit number stands for one value: a draw of 64 bits gives four.
  std::vector<uint16_t> values(1 << 16);
  for (size_t i = 0; i < values.size(); ++i) {
    const float uniform = (static_cast<float>(i) + 0.5f) / 32768.0f - 1.0f;
    values[i] = bfloat16(tensor.constant + tensor.deviation * 1.7320508f * uniform).bits;
  }
  std::vector<uint16_t> block(1 << 20);
  for (int64_t left = tensor.elements(); left > 0;) {
    const size_t count = static_cast<size_t>(std::min<int64_t>(left, 1 << 20));
    for (size_t i = 0; i < count; i += 4) {
      const uint64_t bits = random();
      for (size_t j = i; j < std::min(i + 4, count); ++j) {
        block[j] = values[bits >> (16 * (j - i)) & 0xFFFF];
      }
    }
    out.write(reinterpret_cast<const char*>(block.data()), static_cast<std::streamsize>(2 * count));
    left -= static_cast<int64_t>(count);
  }
}

absl::Status WriteWeights(const Shape& shape, const std::string& path) {
  const std::vector<TensorPlan> plan = PlanTensors(shape);
  nlohmann::json header;
  int64_t end = 0;
  for (const TensorPlan& tensor : plan) {
    const int64_t begin = end;
    end += 2 * tensor.elements();
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string size;
  ByteWriter(&size).WriteU64(text.size());
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << size << text;
  std::mt19937_64 random(1);
  for (const TensorPlan& tensor : plan) WriteElements(tensor, random, out);
  out.flush();
  if (!out) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

absl::Status WriteJson(const std::string& path, const nlohmann::json& json) {
  std::ofstream out(path, std::ios::trunc);
  out << json.dump(2) << "\n";
  out.flush();
  if (!out) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteRandomModel(absl::string_view name, const std::string& folder) {
  const Shape* shape = nullptr;
  std::string known;
  for (const Shape& candidate : kShapes) {
    if (candidate.name == name) shape = &candidate;
    absl::StrAppend(&known, known.empty() ? "" : ", ", candidate.name);
  }
  if (shape == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("shape '", name, "' is unknown; use ", known));
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::UnavailableError(absl::StrCat(folder, ": ", error.message()));
  KVTIER_RETURN_IF_ERROR(
      WriteJson(folder + "/config.json", {{"architectures", {"Qwen2ForCausalLM"}},
                                          {"model_type", "qwen2"},
                                          {"hidden_size", shape->hidden},
                                          {"num_hidden_layers", shape->layers},
                                          {"num_attention_heads", shape->q_heads},
                                          {"num_key_value_heads", shape->kv_heads},
                                          {"head_dim", shape->head_dim},
                                          {"intermediate_size", shape->intermediate},
                                          {"vocab_size", shape->vocabulary},
                                          {"max_position_embeddings", shape->positions},
                                          {"rope_theta", 1000000.0},
                                          {"rms_norm_eps", 1e-6},
                                          {"hidden_act", "silu"},
                                          {"use_sliding_window", false},
                                          {"tie_word_embeddings", true},
                                          {"torch_dtype", "bfloat16"}}));
  // As many ids as the words of a real profile.
  const auto ids = [](uint32_t first, uint32_t count) {
    std::vector<uint32_t> list;
    for (uint32_t i = 0; i < count; ++i) list.push_back(first + i);
    return list;
  };
  KVTIER_RETURN_IF_ERROR(
      WriteJson(folder + "/kvtier_prompt_profile.json", {{"version", 1},
                                                         {"name", std::string(name)},
                                                         {"prefix", ids(10, 30)},
                                                         {"postfix", ids(50, 5)},
                                                         {"first_prompt", ids(60, 8)},
                                                         {"later_prompt", ids(70, 14)},
                                                         {"query_prefix", ids(90, 1)},
                                                         {"hint_tokens", 8},
                                                         {"chunk_tokens", shape->chunk}}));
  return WriteWeights(*shape, folder + "/model.safetensors");
}

}  // namespace kvtier::bench
