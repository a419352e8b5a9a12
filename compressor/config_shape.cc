// config.json's words for how large a model is and which of its layers see everything.
#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/config_parts.h"

namespace kvtier {
namespace {

// Widest layer of any open model is 16,384 (hidden) and 53,248 (intermediate).
constexpr int64_t kLayerWidthMax = int64_t{1} << 18;

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

}  // namespace

absl::Status ReadSizes(ConfigFields& fields, ModelConfig& config) {
  const bool head_dim_given = fields.Has("head_dim");
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
    return BadConfig(fields.prefix() + "num_key_value_heads",
                     absl::StrCat("is above ", limits::kKvHeadsMax));
  }
  if (config.q_heads % config.kv_heads != 0) {
    return BadConfig(
        fields.prefix() + "num_key_value_heads",
        absl::StrCat("is ", config.kv_heads, ", which does not divide ", config.q_heads, " heads"));
  }
  if (!head_dim_given && other.head_dim == 0 && config.hidden % config.q_heads != 0) {
    return BadConfig(fields.prefix() + "hidden_size",
                     "is no multiple of num_attention_heads, and head_dim is missing");
  }
  if (config.head_dim < 2 || config.head_dim > limits::kHeadDimMax || config.head_dim % 2 != 0) {
    return BadConfig(
        fields.prefix() + "head_dim",
        absl::StrCat("is ", config.head_dim, ", not even or above ", limits::kHeadDimMax));
  }
  return absl::OkStatus();
}

absl::Status ReadLayerKinds(ConfigFields& fields, ModelConfig& config) {
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
    int64_t first = 28;
    if (fields.Has("max_window_layers") && sliding) {
      KVTIER_ASSIGN_OR_RETURN(const std::optional<int64_t> said,
                              fields.CountOrZero("max_window_layers", limits::kLayersMax));
      first = said.value_or(first);
    }
    slides = [first, sliding](int64_t layer) { return sliding && layer >= first; };
  }
  if (sliding) {
    KVTIER_ASSIGN_OR_RETURN(
        config.window, fields.Count("sliding_window", limits::kContextTokensMax, gemma ? 4096 : 0));
  } else if (config.family == ModelFamily::kLlama) {
    KVTIER_RETURN_IF_ERROR(fields.Only("sliding_window", "null"));
  } else {
    fields.Has("sliding_window");  // Says nothing.
  }

  KVTIER_ASSIGN_OR_RETURN(const std::optional<std::vector<std::string>> types,
                          fields.Items("layer_types", config.layers));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    bool slide = slides(layer);
    if (types.has_value()) {
      const std::string& type = (*types)[static_cast<size_t>(layer)];
      slide = type == R"("sliding_attention")";
      if ((slide && !sliding) || (!slide && type != R"("full_attention")")) {
        return fields.NotBuilt("layer_types", type);
      }
    }
    config.layer_kinds.push_back(slide ? LayerKind::kSliding : LayerKind::kGlobal);
  }
  const auto count =
      std::count(config.layer_kinds.begin(), config.layer_kinds.end(), LayerKind::kSliding);
  if (count == config.layers) {
    return BadConfig(fields.prefix() + "layer_types",
                     "leave no layer with full attention, so nothing to score");
  }
  if (count == 0) config.window = 0;
  return absl::OkStatus();
}

}  // namespace kvtier
