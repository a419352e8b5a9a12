#include "compressor/model_config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <set>
#include <span>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/json_text.h"

namespace kvtier {
namespace {

using nlohmann::json;

// Widest layer of any open model is 16,384 (hidden) and 53,248 (intermediate).
constexpr int64_t kLayerWidthMax = int64_t{1} << 18;

// Keys that say nothing about how a forward pass computes: provenance, training, generation
// defaults, what Python returns. Anything that is neither here nor read below is refused.
constexpr absl::string_view kIrrelevantKeys[] = {
    "_name_or_path", "torch_dtype", "dtype", "transformers_version",
    // Tokens and generation: the compressor is given ids, the caller says when to stop.
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "use_cache", "tokenizer_class",
    // Training only.
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop",
    // Shape of Python's answers.
    "output_attentions", "output_hidden_states", "return_dict", "torchscript", "problem_type",
    "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params",
    // Parallel plans of a library.
    "base_model_tp_plan", "base_model_pp_plan"};

std::string Shown(const json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace).substr(0, 80);
}

absl::Status Bad(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", key, " ", what));
}
absl::Status NotBuilt(absl::string_view key, const json& value) {
  return absl::UnimplementedError(
      absl::StrCat("config.json: ", key, " = ", Shown(value), " is not built"));
}

// Reads keys and remembers which ones; what is left over is unknown.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  // Null when absent or null.
  const json* Find(const std::string& key) {
    read_.insert(key);
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  // In [1, max]; the default (0: none) when absent.
  absl::StatusOr<int64_t> Count(const std::string& key, int64_t max, int64_t otherwise = 0) {
    const json* value = Find(key);
    if (value == nullptr && otherwise > 0) return otherwise;
    if (value == nullptr) return Bad(key, "is missing");
    if (!value->is_number_unsigned() || value->get<uint64_t>() < 1 ||
        value->get<uint64_t>() > static_cast<uint64_t>(max)) {
      return Bad(key, absl::StrCat("is ", Shown(*value), ", not a whole number in [1, ", max, "]"));
    }
    return value->get<int64_t>();
  }
  absl::StatusOr<bool> Flag(const std::string& key, bool otherwise) {
    const json* value = Find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) return Bad(key, absl::StrCat("is ", Shown(*value), ", no boolean"));
    return value->get<bool>();
  }
  absl::StatusOr<std::optional<double>> Positive(const std::string& key) {
    const json* value = Find(key);
    if (value == nullptr) return std::optional<double>();
    if (!value->is_number() || !(value->get<double>() > 0) ||
        !(value->get<double>() <= 3e38)) {  // Must be finite in fp32.
      return Bad(key, absl::StrCat("is ", Shown(*value), ", no positive number"));
    }
    return std::optional<double>(value->get<double>());
  }
  // UNIMPLEMENTED unless absent, null or `value`.
  absl::Status Only(const std::string& key, const json& value) {
    const json* found = Find(key);
    return found == nullptr || *found == value ? absl::OkStatus() : NotBuilt(key, *found);
  }
  absl::Status RefuseUnknown(absl::string_view prefix,
                             std::span<const absl::string_view> ignored) const {
    for (const auto& [key, value] : object_.items()) {
      if (read_.count(key) > 0) continue;
      if (std::find(ignored.begin(), ignored.end(), key) != ignored.end()) continue;
      return NotBuilt(absl::StrCat(prefix, key.substr(0, limits::kNameBytesMax)), value);
    }
    return absl::OkStatus();
  }

 private:
  const json& object_;
  std::set<std::string> read_;
};

// rope_theta at the top and rope_scaling (transformers 4), or rope_parameters (transformers 5).
absl::StatusOr<double> ReadRopeTheta(Fields& fields) {
  KVTIER_ASSIGN_OR_RETURN(std::optional<double> theta, fields.Positive("rope_theta"));
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* value = fields.Find(key);
    if (value == nullptr) continue;
    if (!value->is_object()) return Bad(key, "is no object");
    Fields rope(*value);
    const std::string prefix = absl::StrCat(key, ".");
    for (const char* type : {"type", "rope_type"}) {
      const json* name = rope.Find(type);
      if (name != nullptr && *name != "default") return NotBuilt(prefix + type, *name);
    }
    KVTIER_RETURN_IF_ERROR(rope.Only("partial_rotary_factor", 1.0));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> inner, rope.Positive("rope_theta"));
    KVTIER_RETURN_IF_ERROR(rope.RefuseUnknown(prefix, {}));
    if (inner.has_value() && theta.has_value() && *inner != *theta) {
      return Bad(prefix + "rope_theta", "differs from rope_theta");
    }
    if (inner.has_value()) theta = inner;
  }
  return theta.value_or(10000.0);
}

absl::Status CheckArchitecture(Fields& fields) {
  const json* type = fields.Find("model_type");
  if (type == nullptr) return Bad("model_type", "is missing");
  if (*type != "llama") return NotBuilt("model_type", *type);
  const json* architectures = fields.Find("architectures");
  if (architectures != nullptr && *architectures != json::array({"LlamaForCausalLM"})) {
    return NotBuilt("architectures", *architectures);
  }
  if (const json* layers = fields.Find("layer_types"); layers != nullptr) {
    if (!layers->is_array()) return Bad("layer_types", "is no list");
    for (const json& layer : *layers) {
      if (layer != "full_attention") return NotBuilt("layer_types", layer);
    }
  }
  KVTIER_RETURN_IF_ERROR(fields.Only("hidden_act", "silu"));
  KVTIER_RETURN_IF_ERROR(fields.Only("attention_bias", false));
  KVTIER_RETURN_IF_ERROR(fields.Only("mlp_bias", false));
  KVTIER_RETURN_IF_ERROR(fields.Only("pretraining_tp", 1));
  KVTIER_RETURN_IF_ERROR(fields.Only("sliding_window", nullptr));
  KVTIER_RETURN_IF_ERROR(fields.Only("quantization_config", nullptr));
  KVTIER_RETURN_IF_ERROR(fields.Only("partial_rotary_factor", 1.0));
  KVTIER_RETURN_IF_ERROR(fields.Only("is_encoder_decoder", false));
  KVTIER_RETURN_IF_ERROR(fields.Only("add_cross_attention", false));
  KVTIER_RETURN_IF_ERROR(fields.Only("chunk_size_feed_forward", 0));
  return fields.Only("pruned_heads", json::object());
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::Parse(absl::string_view config_json) {
  if (config_json.size() > limits::kConfigJsonBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: ", config_json.size(), " bytes, at most ", limits::kConfigJsonBytesMax));
  }
  KVTIER_RETURN_IF_ERROR(CheckJsonObject(config_json, "config.json"));
  const json object =
      json::parse(config_json.begin(), config_json.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");

  Fields fields(object);
  KVTIER_RETURN_IF_ERROR(CheckArchitecture(fields));
  ModelConfig config;
  KVTIER_ASSIGN_OR_RETURN(config.hidden, fields.Count("hidden_size", kLayerWidthMax));
  KVTIER_ASSIGN_OR_RETURN(config.layers, fields.Count("num_hidden_layers", limits::kLayersMax));
  KVTIER_ASSIGN_OR_RETURN(config.q_heads,
                          fields.Count("num_attention_heads", limits::kQueryHeadsMax));
  KVTIER_ASSIGN_OR_RETURN(config.kv_heads,
                          fields.Count("num_key_value_heads", limits::kKvHeadsMax, config.q_heads));
  const int64_t head_dim = config.hidden / config.q_heads;
  KVTIER_ASSIGN_OR_RETURN(config.head_dim, fields.Count("head_dim", limits::kHeadDimMax, head_dim));
  KVTIER_ASSIGN_OR_RETURN(config.intermediate, fields.Count("intermediate_size", kLayerWidthMax));
  KVTIER_ASSIGN_OR_RETURN(config.vocabulary, fields.Count("vocab_size", limits::kVocabularyMax));
  KVTIER_ASSIGN_OR_RETURN(config.positions_max,
                          fields.Count("max_position_embeddings", limits::kContextTokensMax));
  KVTIER_ASSIGN_OR_RETURN(const std::optional<double> epsilon, fields.Positive("rms_norm_eps"));
  config.rms_epsilon = static_cast<float>(epsilon.value_or(1e-6));
  KVTIER_ASSIGN_OR_RETURN(config.rope_theta, ReadRopeTheta(fields));
  KVTIER_ASSIGN_OR_RETURN(config.tied_embeddings, fields.Flag("tie_word_embeddings", false));
  KVTIER_RETURN_IF_ERROR(fields.RefuseUnknown("", kIrrelevantKeys));

  if (config.q_heads % config.kv_heads != 0) {
    return Bad("num_key_value_heads", absl::StrCat("does not divide ", config.q_heads, " heads"));
  }
  if (config.kv_heads > limits::kKvHeadsMax) {  // By default it is num_attention_heads.
    return Bad("num_key_value_heads", absl::StrCat("is above ", limits::kKvHeadsMax));
  }
  if (object.find("head_dim") == object.end() && config.hidden % config.q_heads != 0) {
    return Bad("hidden_size", "is no multiple of num_attention_heads, and head_dim is missing");
  }
  if (config.head_dim > limits::kHeadDimMax || config.head_dim % 2 != 0) {
    return Bad("head_dim",
               absl::StrCat("is ", config.head_dim, ", not even or above ", limits::kHeadDimMax));
  }
  return config;
}

float ModelConfig::softmax_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

// In fp32 throughout, as Hugging Face computes it: 1 / theta ** (arange(0, D, 2) / D).
RopeTable ModelConfig::MakeRopeTable() const {
  RopeTable table;
  for (int64_t d = 0; d < head_dim; d += 2) {
    const float exponent = static_cast<float>(d) / static_cast<float>(head_dim);
    table.inverse_frequencies.push_back(1.0f / std::pow(static_cast<float>(rope_theta), exponent));
  }
  return table;
}

std::string ModelConfig::RopeFingerprint() const {
  char theta[40];
  std::snprintf(theta, sizeof(theta), "%.17g", rope_theta);
  return absl::StrCat("rope/1 rotation=half type=default theta=", theta, " dims=", head_dim);
}

Geometry ModelConfig::MakeGeometry(DType kv_dtype) const {
  Geometry geometry;
  geometry.kv_heads = static_cast<uint32_t>(kv_heads);
  geometry.head_dim = static_cast<uint32_t>(head_dim);
  geometry.dtype = kv_dtype;
  geometry.layers.assign(static_cast<size_t>(layers), LayerKind::kGlobal);
  return geometry;
}

}  // namespace kvtier
