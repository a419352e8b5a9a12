// config.json as a whole: which family it is of, what of it is built, and that nothing is left
// over.
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/config_fields.h"
#include "compressor/config_parts.h"
#include "compressor/model_config.h"

namespace kvtier {
namespace {

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
absl::StatusOr<ModelFamily> ReadFamily(ConfigFields& fields, bool nested) {
  if (!fields.Has("model_type")) return BadConfig(fields.prefix() + "model_type", "is missing");
  for (const FamilyNames& names : kFamilies) {
    if (!fields.Is("model_type", absl::StrCat("\"", names.model_type, "\""))) continue;
    if (nested && names.family != ModelFamily::kGemma3) continue;
    KVTIER_RETURN_IF_ERROR(
        fields.Only("architectures", absl::StrCat("[\"", names.architecture, "\"]")));
    return names.family;
  }
  return fields.NotBuilt("model_type");
}

// What changes numbers and is built in one form only.
absl::Status RefuseVariants(ConfigFields& fields, ModelFamily family) {
  if (family == ModelFamily::kGemma3) {
    KVTIER_RETURN_IF_ERROR(fields.Only("hidden_activation", R"("gelu_pytorch_tanh")"));
    KVTIER_RETURN_IF_ERROR(fields.Only("attn_logit_softcapping", "null"));
    KVTIER_RETURN_IF_ERROR(fields.Only("final_logit_softcapping", "null"));
    KVTIER_RETURN_IF_ERROR(fields.Only("use_bidirectional_attention", "false"));
  } else {
    KVTIER_RETURN_IF_ERROR(fields.Only("hidden_act", R"("silu")"));
  }
  // Qwen2 has the biases of q, k and v, said or not. One that says it has none is refused, although
  // transformers pays no attention to it: other readers do.
  KVTIER_RETURN_IF_ERROR(
      fields.Only("attention_bias", family == ModelFamily::kQwen2 ? "true" : "false"));
  if (family == ModelFamily::kLlama) {
    KVTIER_RETURN_IF_ERROR(fields.Only("mlp_bias", "false"));
    KVTIER_RETURN_IF_ERROR(fields.Only("pretraining_tp", "1"));
  }
  KVTIER_RETURN_IF_ERROR(fields.Only("quantization_config", "null"));
  KVTIER_RETURN_IF_ERROR(fields.Only("partial_rotary_factor", "1.0"));
  KVTIER_RETURN_IF_ERROR(fields.Only("is_encoder_decoder", "false"));
  KVTIER_RETURN_IF_ERROR(fields.Only("add_cross_attention", "false"));
  KVTIER_RETURN_IF_ERROR(fields.Only("chunk_size_feed_forward", "0"));
  return fields.Only("pruned_heads", "{}");
}

absl::StatusOr<ModelConfig> ReadTextModel(ConfigFields& fields, bool multimodal) {
  ModelConfig config;
  config.multimodal = multimodal;
  KVTIER_ASSIGN_OR_RETURN(config.family, ReadFamily(fields, multimodal));
  KVTIER_RETURN_IF_ERROR(RefuseVariants(fields, config.family));
  KVTIER_RETURN_IF_ERROR(ReadSizes(fields, config));
  KVTIER_RETURN_IF_ERROR(ReadLayerKinds(fields, config));
  KVTIER_RETURN_IF_ERROR(ReadRope(fields, config));
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
absl::StatusOr<ModelConfig> ReadMultimodal(ConfigFields& fields) {
  KVTIER_RETURN_IF_ERROR(fields.Only("architectures", R"(["Gemma3ForConditionalGeneration"])"));
  KVTIER_ASSIGN_OR_RETURN(std::optional<ConfigFields> text, fields.Object("text_config"));
  if (!text.has_value()) return BadConfig("text_config", "is missing");
  KVTIER_RETURN_IF_ERROR(fields.Only("quantization_config", "null"));
  KVTIER_ASSIGN_OR_RETURN(ModelConfig config, ReadTextModel(*text, /*multimodal=*/true));
  KVTIER_ASSIGN_OR_RETURN(const bool tied,
                          fields.Flag("tie_word_embeddings", config.tied_embeddings));
  if (tied != config.tied_embeddings) {
    return BadConfig("tie_word_embeddings", "differs from text_config.tie_word_embeddings");
  }
  std::vector<absl::string_view> ignored(std::begin(kIrrelevantKeys), std::end(kIrrelevantKeys));
  ignored.insert(ignored.end(), std::begin(kImageKeys), std::end(kImageKeys));
  KVTIER_RETURN_IF_ERROR(fields.RefuseUnknown(ignored));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::Parse(absl::string_view config_json) {
  KVTIER_ASSIGN_OR_RETURN(ConfigFields fields, ConfigFields::Parse(config_json));
  if (fields.Is("model_type", R"("gemma3")")) return ReadMultimodal(fields);
  return ReadTextModel(fields, /*multimodal=*/false);
}

absl::string_view ModelFamilyName(ModelFamily family) {
  for (const FamilyNames& names : kFamilies) {
    if (names.family == family) return names.name;
  }
  return "unknown";
}

}  // namespace kvtier
