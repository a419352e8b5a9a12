#include "compressor/model_config.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <utility>

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
    // How Python keeps its own cache.
    "cache_implementation",
    // Sparse attention over very long inputs in the 1M variants of Qwen2.5: transformers, whose
    // numbers are the measure here, computes full attention whatever it says.
    "dual_chunk_attention_config",
    // Shape of Python's answers.
    "output_attentions", "output_hidden_states", "return_dict", "torchscript", "problem_type",
    "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params",
    // Parallel plans of a library.
    "base_model_tp_plan", "base_model_pp_plan"};

// Beside text_config in a model for text and images: what only images need.
constexpr absl::string_view kImageKeys[] = {
    "vision_config",   "mm_tokens_per_image", "image_token_index", "boi_token_index",
    "eoi_token_index", "image_token_id",      "boi_token_id",      "eoi_token_id"};

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
  // `prefix` stands before the key in messages: "text_config.".
  explicit Fields(const json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

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
    if (value == nullptr) return Bad(prefix_ + key, "is missing");
    if (!value->is_number_unsigned() || value->get<uint64_t>() < 1 ||
        value->get<uint64_t>() > static_cast<uint64_t>(max)) {
      return Bad(prefix_ + key,
                 absl::StrCat("is ", Shown(*value), ", not a whole number in [1, ", max, "]"));
    }
    return value->get<int64_t>();
  }
  absl::StatusOr<bool> Flag(const std::string& key, bool otherwise) {
    const json* value = Find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean())
      return Bad(prefix_ + key, absl::StrCat("is ", Shown(*value), ", no boolean"));
    return value->get<bool>();
  }
  absl::StatusOr<std::optional<double>> Positive(const std::string& key) {
    const json* value = Find(key);
    if (value == nullptr) return std::optional<double>();
    // What computes with it does so in fp32, where it must be neither zero nor infinite.
    if (!value->is_number() || !(value->get<double>() >= std::numeric_limits<float>::min()) ||
        !(value->get<double>() <= std::numeric_limits<float>::max())) {
      return Bad(prefix_ + key, absl::StrCat("is ", Shown(*value), ", no positive number"));
    }
    return std::optional<double>(value->get<double>());
  }
  // UNIMPLEMENTED unless absent, null or `value`.
  absl::Status Only(const std::string& key, const json& value) {
    const json* found = Find(key);
    return found == nullptr || *found == value ? absl::OkStatus() : NotBuilt(prefix_ + key, *found);
  }
  absl::Status RefuseUnknown(std::span<const absl::string_view> ignored) const {
    for (const auto& [key, value] : object_.items()) {
      if (read_.count(key) > 0) continue;
      if (std::find(ignored.begin(), ignored.end(), key) != ignored.end()) continue;
      return NotBuilt(absl::StrCat(prefix_, key.substr(0, limits::kNameBytesMax)), value);
    }
    return absl::OkStatus();
  }

 private:
  const json& object_;
  const std::string prefix_;
  std::set<std::string> read_;
};

// One set of RoPE parameters: rope_scaling (transformers 4) or rope_parameters (transformers 5).
class RopeReader {
 public:
  RopeReader(const json& object, std::string name, int64_t positions_max)
      : fields_(object, name + "."), name_(std::move(name)), positions_max_(positions_max) {}

  // `theta` is what stands outside, or `otherwise` if nothing does.
  absl::StatusOr<RopeSpec> Read(std::optional<double> theta, double otherwise) {
    RopeSpec spec;
    KVTIER_ASSIGN_OR_RETURN(const std::string kind, ReadKind());
    KVTIER_RETURN_IF_ERROR(fields_.Only("partial_rotary_factor", 1.0));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> inner, fields_.Positive("rope_theta"));
    if (inner.has_value() && theta.has_value() && *inner != *theta) {
      return Bad(name_ + ".rope_theta", "differs from rope_theta");
    }
    spec.theta = inner.has_value() ? *inner : theta.value_or(otherwise);
    if (kind != "default") {
      KVTIER_ASSIGN_OR_RETURN(spec.factor, Required("factor"));
    }
    if (kind == "linear") {
      spec.kind = RopeKind::kLinear;
    } else if (kind == "llama3") {
      KVTIER_RETURN_IF_ERROR(ReadLlama3(spec));
    } else if (kind == "yarn") {
      KVTIER_RETURN_IF_ERROR(ReadYarn(spec));
    }
    KVTIER_RETURN_IF_ERROR(fields_.RefuseUnknown({}));
    return spec;
  }

 private:
  absl::StatusOr<std::string> ReadKind() {
    std::string kind = "default";
    bool read = false;
    for (const char* key : {"rope_type", "type"}) {
      const json* value = fields_.Find(key);
      if (value == nullptr) continue;
      if (!value->is_string()) return Bad(absl::StrCat(name_, ".", key), "is no string");
      if (*value != "default" && *value != "linear" && *value != "llama3" && *value != "yarn") {
        return NotBuilt(absl::StrCat(name_, ".", key), *value);
      }
      if (read && *value != kind) return Bad(name_ + ".type", "differs from rope_type");
      kind = value->get<std::string>();
      read = true;
    }
    return kind;
  }

  absl::StatusOr<double> Required(const std::string& key) {
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> value, fields_.Positive(key));
    if (!value.has_value()) return Bad(absl::StrCat(name_, ".", key), "is missing");
    return *value;
  }

  absl::Status ReadLlama3(RopeSpec& spec) {
    spec.kind = RopeKind::kLlama3;
    KVTIER_ASSIGN_OR_RETURN(spec.low_frequency_factor, Required("low_freq_factor"));
    KVTIER_ASSIGN_OR_RETURN(spec.high_frequency_factor, Required("high_freq_factor"));
    if (spec.high_frequency_factor <= spec.low_frequency_factor) {
      return Bad(name_ + ".high_freq_factor", "is not above low_freq_factor");
    }
    KVTIER_ASSIGN_OR_RETURN(
        spec.original_positions,
        fields_.Count("original_max_position_embeddings", limits::kContextTokensMax));
    return absl::OkStatus();
  }

  absl::Status ReadYarn(RopeSpec& spec) {
    spec.kind = RopeKind::kYarn;
    if (spec.theta <= 1) return Bad(name_ + ".rope_theta", "is not above 1, which yarn needs");
    KVTIER_ASSIGN_OR_RETURN(spec.original_positions,
                            fields_.Count("original_max_position_embeddings",
                                          limits::kContextTokensMax, positions_max_));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> fast, fields_.Positive("beta_fast"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> slow, fields_.Positive("beta_slow"));
    spec.beta_fast = fast.value_or(spec.beta_fast);
    spec.beta_slow = slow.value_or(spec.beta_slow);
    if (spec.beta_fast <= spec.beta_slow)
      return Bad(name_ + ".beta_fast", "is not above beta_slow");
    KVTIER_ASSIGN_OR_RETURN(spec.truncate, fields_.Flag("truncate", true));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> mscale, fields_.Positive("mscale"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> all, fields_.Positive("mscale_all_dim"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> given,
                            fields_.Positive("attention_factor"));
    spec.attention_factor =
        given.value_or(YarnAttentionFactor(spec.factor, mscale.value_or(0), all.value_or(0)));
    return absl::OkStatus();
  }

  Fields fields_;
  const std::string name_;
  const int64_t positions_max_;
};

// `value` is null where nothing is said.
absl::StatusOr<RopeSpec> ReadRopeObject(const json* value, const std::string& name,
                                        int64_t positions_max, std::optional<double> theta,
                                        double otherwise) {
  static const json nothing = json::object();
  if (value == nullptr) value = &nothing;
  if (!value->is_object()) return Bad(name, "is no object");
  return RopeReader(*value, name, positions_max).Read(theta, otherwise);
}

absl::Status ReadRope(Fields& fields, ModelConfig& config) {
  const bool gemma = config.family == ModelFamily::kGemma3;
  const double otherwise = gemma ? 1e6 : 1e4;
  constexpr double kLocalOtherwise = 1e4;
  KVTIER_ASSIGN_OR_RETURN(const std::optional<double> theta, fields.Positive("rope_theta"));
  std::optional<double> local_theta;
  if (gemma) {
    KVTIER_ASSIGN_OR_RETURN(local_theta, fields.Positive("rope_local_base_freq"));
  }
  const json* scaling = fields.Find("rope_scaling");
  const json* parameters = fields.Find("rope_parameters");
  if (scaling != nullptr && parameters != nullptr && *scaling != *parameters) {
    return Bad("rope_parameters", "differs from rope_scaling");
  }
  if (scaling != nullptr || parameters == nullptr) {  // transformers 4
    KVTIER_ASSIGN_OR_RETURN(config.rope, ReadRopeObject(scaling, "rope_scaling",
                                                        config.positions_max, theta, otherwise));
  } else if (gemma && parameters->is_object()) {
    Fields kinds(*parameters, "rope_parameters.");
    KVTIER_ASSIGN_OR_RETURN(
        config.rope, ReadRopeObject(kinds.Find("full_attention"), "rope_parameters.full_attention",
                                    config.positions_max, theta, otherwise));
    KVTIER_ASSIGN_OR_RETURN(
        config.sliding_rope,
        ReadRopeObject(kinds.Find("sliding_attention"), "rope_parameters.sliding_attention",
                       config.positions_max, local_theta, kLocalOtherwise));
    return kinds.RefuseUnknown({});
  } else {
    KVTIER_ASSIGN_OR_RETURN(config.rope, ReadRopeObject(parameters, "rope_parameters",
                                                        config.positions_max, theta, otherwise));
  }
  config.sliding_rope = config.rope;
  if (gemma) config.sliding_rope = RopeSpec{.theta = local_theta.value_or(kLocalOtherwise)};
  return absl::OkStatus();
}

// Numbers that are possible one by one can together leave the range of fp32.
absl::Status CheckFrequencies(const ModelConfig& config) {
  for (LayerKind kind : {LayerKind::kGlobal, LayerKind::kSliding}) {
    const RopeTable table = config.MakeRopeTable(kind);
    const auto finite = [](float value) { return std::isfinite(value); };
    if (!finite(table.attention_scaling) ||
        !std::all_of(table.inverse_frequencies.begin(), table.inverse_frequencies.end(), finite)) {
      return Bad("rope_theta",
                 "and the numbers of its scaling give a frequency that is not finite");
    }
  }
  return absl::OkStatus();
}

// Which layers slide, and how far they see.
absl::Status ReadLayerKinds(Fields& fields, ModelConfig& config) {
  const bool gemma = config.family == ModelFamily::kGemma3;
  bool sliding = gemma;
  std::function<bool(int64_t)> slides = [](int64_t) { return false; };
  if (gemma) {
    int64_t pattern = 6;
    for (const char* key : {"_sliding_window_pattern", "sliding_window_pattern"}) {
      KVTIER_ASSIGN_OR_RETURN(pattern, fields.Count(key, limits::kLayersMax, pattern));
    }
    slides = [pattern](int64_t layer) { return (layer + 1) % pattern != 0; };
  } else if (config.family != ModelFamily::kLlama) {
    KVTIER_ASSIGN_OR_RETURN(sliding, fields.Flag("use_sliding_window", false));
    // Written whether it counts or not.
    const json* layers = fields.Find("max_window_layers");
    int64_t first = 28;
    if (sliding && layers != nullptr) {
      if (!layers->is_number_unsigned() || layers->get<uint64_t>() > limits::kLayersMax) {
        return Bad("max_window_layers", absl::StrCat("is ", Shown(*layers)));
      }
      first = layers->get<int64_t>();
    }
    slides = [first, sliding](int64_t layer) { return sliding && layer >= first; };
  }
  if (sliding) {
    KVTIER_ASSIGN_OR_RETURN(
        config.window, fields.Count("sliding_window", limits::kContextTokensMax, gemma ? 4096 : 0));
  } else if (config.family == ModelFamily::kLlama) {
    KVTIER_RETURN_IF_ERROR(fields.Only("sliding_window", nullptr));
  } else {
    fields.Find("sliding_window");
  }

  const json* types = fields.Find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != uint64_t(config.layers))) {
    return Bad("layer_types", absl::StrCat("is no list of ", config.layers, " layers"));
  }
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    bool slide = slides(layer);
    if (types != nullptr) {
      const json& type = (*types)[static_cast<size_t>(layer)];
      slide = type == "sliding_attention";
      if ((slide && !sliding) || (!slide && type != "full_attention")) {
        return NotBuilt("layer_types", type);
      }
    }
    config.layer_kinds.push_back(slide ? LayerKind::kSliding : LayerKind::kGlobal);
  }
  const auto count =
      std::count(config.layer_kinds.begin(), config.layer_kinds.end(), LayerKind::kSliding);
  if (count == config.layers) {
    return Bad("layer_types", "leave no layer with full attention, so nothing to score");
  }
  if (count == 0) config.window = 0;
  return absl::OkStatus();
}

// Sizes that Gemma's configurations leave to transformers' defaults; 0: must be there.
struct Defaults {
  int64_t hidden = 0, intermediate = 0, layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  int64_t vocabulary = 0, positions = 0;
  bool tied = false;
};
Defaults DefaultsOf(ModelFamily family) {
  if (family == ModelFamily::kQwen3) return {.head_dim = 128};
  if (family != ModelFamily::kGemma3) return {};
  return {.hidden = 2304,
          .intermediate = 9216,
          .layers = 26,
          .q_heads = 8,
          .kv_heads = 4,
          .head_dim = 256,
          .vocabulary = 262208,
          .positions = 131072,
          .tied = true};
}

absl::Status ReadSizes(Fields& fields, bool head_dim_given, ModelConfig& config) {
  const Defaults other = DefaultsOf(config.family);
  KVTIER_ASSIGN_OR_RETURN(config.hidden, fields.Count("hidden_size", kLayerWidthMax, other.hidden));
  KVTIER_ASSIGN_OR_RETURN(config.layers,
                          fields.Count("num_hidden_layers", limits::kLayersMax, other.layers));
  KVTIER_ASSIGN_OR_RETURN(
      config.q_heads, fields.Count("num_attention_heads", limits::kQueryHeadsMax, other.q_heads));
  KVTIER_ASSIGN_OR_RETURN(config.kv_heads,
                          fields.Count("num_key_value_heads", limits::kKvHeadsMax,
                                       other.kv_heads > 0 ? other.kv_heads : config.q_heads));
  const int64_t head_dim = other.head_dim > 0 ? other.head_dim : config.hidden / config.q_heads;
  KVTIER_ASSIGN_OR_RETURN(config.head_dim, fields.Count("head_dim", limits::kHeadDimMax, head_dim));
  KVTIER_ASSIGN_OR_RETURN(config.intermediate,
                          fields.Count("intermediate_size", kLayerWidthMax, other.intermediate));
  KVTIER_ASSIGN_OR_RETURN(config.vocabulary,
                          fields.Count("vocab_size", limits::kVocabularyMax, other.vocabulary));
  KVTIER_ASSIGN_OR_RETURN(
      config.positions_max,
      fields.Count("max_position_embeddings", limits::kContextTokensMax, other.positions));
  KVTIER_ASSIGN_OR_RETURN(const std::optional<double> epsilon, fields.Positive("rms_norm_eps"));
  config.rms_epsilon = static_cast<float>(epsilon.value_or(1e-6));
  KVTIER_ASSIGN_OR_RETURN(config.tied_embeddings, fields.Flag("tie_word_embeddings", other.tied));

  if (config.kv_heads > limits::kKvHeadsMax) {  // By default it is num_attention_heads.
    return Bad("num_key_value_heads", absl::StrCat("is above ", limits::kKvHeadsMax));
  }
  if (config.q_heads % config.kv_heads != 0) {
    return Bad(
        "num_key_value_heads",
        absl::StrCat("is ", config.kv_heads, ", which does not divide ", config.q_heads, " heads"));
  }
  if (!head_dim_given && other.head_dim == 0 && config.hidden % config.q_heads != 0) {
    return Bad("hidden_size", "is no multiple of num_attention_heads, and head_dim is missing");
  }
  if (config.head_dim < 2 || config.head_dim > limits::kHeadDimMax || config.head_dim % 2 != 0) {
    return Bad("head_dim",
               absl::StrCat("is ", config.head_dim, ", not even or above ", limits::kHeadDimMax));
  }
  return absl::OkStatus();
}

struct FamilyNames {
  ModelFamily family;
  absl::string_view name;  // Of the family.
  absl::string_view model_type;
  absl::string_view architecture;
};
constexpr FamilyNames kFamilies[] = {
    {ModelFamily::kLlama, "llama", "llama", "LlamaForCausalLM"},
    {ModelFamily::kQwen2, "qwen2", "qwen2", "Qwen2ForCausalLM"},
    {ModelFamily::kQwen3, "qwen3", "qwen3", "Qwen3ForCausalLM"},
    {ModelFamily::kGemma3, "gemma3", "gemma3_text", "Gemma3ForCausalLM"},
};

// The family by model_type; `nested` configurations name their architecture outside.
absl::StatusOr<ModelFamily> ReadFamily(Fields& fields, bool nested) {
  const json* type = fields.Find("model_type");
  if (type == nullptr) return Bad("model_type", "is missing");
  for (const FamilyNames& names : kFamilies) {
    if (*type != std::string(names.model_type) || (nested && names.family != ModelFamily::kGemma3))
      continue;
    const json* architectures = fields.Find("architectures");
    if (architectures != nullptr &&
        *architectures != json::array({std::string(names.architecture)})) {
      return NotBuilt("architectures", *architectures);
    }
    return names.family;
  }
  return NotBuilt("model_type", *type);
}

// What changes numbers and is built in one form only.
absl::Status RefuseVariants(Fields& fields, ModelFamily family) {
  if (family == ModelFamily::kGemma3) {
    KVTIER_RETURN_IF_ERROR(fields.Only("hidden_activation", "gelu_pytorch_tanh"));
    KVTIER_RETURN_IF_ERROR(fields.Only("attn_logit_softcapping", nullptr));
    KVTIER_RETURN_IF_ERROR(fields.Only("final_logit_softcapping", nullptr));
    KVTIER_RETURN_IF_ERROR(fields.Only("use_bidirectional_attention", false));
  } else {
    KVTIER_RETURN_IF_ERROR(fields.Only("hidden_act", "silu"));
  }
  if (family != ModelFamily::kQwen2) {  // Which has the biases of q, k and v, said or not.
    KVTIER_RETURN_IF_ERROR(fields.Only("attention_bias", false));
  }
  if (family == ModelFamily::kLlama) {
    KVTIER_RETURN_IF_ERROR(fields.Only("mlp_bias", false));
    KVTIER_RETURN_IF_ERROR(fields.Only("pretraining_tp", 1));
  }
  KVTIER_RETURN_IF_ERROR(fields.Only("quantization_config", nullptr));
  KVTIER_RETURN_IF_ERROR(fields.Only("partial_rotary_factor", 1.0));
  KVTIER_RETURN_IF_ERROR(fields.Only("is_encoder_decoder", false));
  KVTIER_RETURN_IF_ERROR(fields.Only("add_cross_attention", false));
  KVTIER_RETURN_IF_ERROR(fields.Only("chunk_size_feed_forward", 0));
  return fields.Only("pruned_heads", json::object());
}

absl::StatusOr<ModelConfig> ReadTextModel(const json& object, bool multimodal) {
  Fields fields(object, multimodal ? "text_config." : "");
  ModelConfig config;
  config.multimodal = multimodal;
  KVTIER_ASSIGN_OR_RETURN(config.family, ReadFamily(fields, multimodal));
  KVTIER_RETURN_IF_ERROR(RefuseVariants(fields, config.family));
  KVTIER_RETURN_IF_ERROR(ReadSizes(fields, fields.Find("head_dim") != nullptr, config));
  KVTIER_RETURN_IF_ERROR(ReadLayerKinds(fields, config));
  KVTIER_RETURN_IF_ERROR(ReadRope(fields, config));
  KVTIER_RETURN_IF_ERROR(CheckFrequencies(config));
  config.softmax_dimension = static_cast<double>(config.head_dim);
  if (config.family == ModelFamily::kGemma3) {
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> scalar,
                            fields.Positive("query_pre_attn_scalar"));
    config.softmax_dimension = scalar.value_or(256);
  }
  KVTIER_RETURN_IF_ERROR(fields.RefuseUnknown(kIrrelevantKeys));
  return config;
}

// A model for text and images: its text_config, and what stands around it.
absl::StatusOr<ModelConfig> ReadMultimodal(const json& object) {
  Fields fields(object);
  fields.Find("model_type");
  const json* architectures = fields.Find("architectures");
  if (architectures != nullptr &&
      *architectures != json::array({"Gemma3ForConditionalGeneration"})) {
    return NotBuilt("architectures", *architectures);
  }
  const json* text = fields.Find("text_config");
  if (text == nullptr) return Bad("text_config", "is missing");
  if (!text->is_object()) return Bad("text_config", "is no object");
  KVTIER_RETURN_IF_ERROR(fields.Only("quantization_config", nullptr));
  KVTIER_ASSIGN_OR_RETURN(ModelConfig config, ReadTextModel(*text, /*multimodal=*/true));
  KVTIER_ASSIGN_OR_RETURN(const bool tied,
                          fields.Flag("tie_word_embeddings", config.tied_embeddings));
  if (tied != config.tied_embeddings) {
    return Bad("tie_word_embeddings", "differs from text_config.tie_word_embeddings");
  }
  std::vector<absl::string_view> ignored(std::begin(kIrrelevantKeys), std::end(kIrrelevantKeys));
  ignored.insert(ignored.end(), std::begin(kImageKeys), std::end(kImageKeys));
  KVTIER_RETURN_IF_ERROR(fields.RefuseUnknown(ignored));
  return config;
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

  const auto type = object.find("model_type");
  if (type != object.end() && *type == "gemma3") return ReadMultimodal(object);
  return ReadTextModel(object, /*multimodal=*/false);
}

absl::string_view ModelFamilyName(ModelFamily family) {
  for (const FamilyNames& names : kFamilies) {
    if (names.family == family) return names.name;
  }
  return "unknown";
}

float ModelConfig::embedding_scale() const {
  return family == ModelFamily::kGemma3 ? std::sqrt(static_cast<float>(hidden)) : 1.0f;
}

float ModelConfig::softmax_scale() const {
  return static_cast<float>(1.0 / std::sqrt(softmax_dimension));
}

RopeTable ModelConfig::MakeRopeTable(LayerKind kind) const {
  return (kind == LayerKind::kSliding ? sliding_rope : rope).MakeTable(head_dim);
}

std::string ModelConfig::RopeFingerprint() const {
  std::string text = rope.Fingerprint(head_dim);
  if (window > 0) absl::StrAppend(&text, "; sliding ", sliding_rope.Fingerprint(head_dim));
  return text;
}

Geometry ModelConfig::MakeGeometry(DType kv_dtype) const {
  Geometry geometry;
  geometry.kv_heads = static_cast<uint32_t>(kv_heads);
  geometry.head_dim = static_cast<uint32_t>(head_dim);
  geometry.dtype = kv_dtype;
  geometry.layers = layer_kinds;
  return geometry;
}

}  // namespace kvtier
