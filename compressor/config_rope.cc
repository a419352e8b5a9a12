// config.json's words for rotary embeddings, of transformers 4 and 5.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/config_parts.h"

namespace kvtier {
namespace {

// One set of RoPE parameters: rope_scaling (transformers 4) or rope_parameters (transformers 5).
class RopeReader {
 public:
  RopeReader(ConfigFields fields, int64_t positions_max)
      : fields_(std::move(fields)), positions_max_(positions_max) {}

  // `theta` is what stands outside, or `otherwise` if nothing does.
  absl::StatusOr<RopeSpec> Read(std::optional<double> theta, double otherwise) {
    RopeSpec spec;
    KVTIER_ASSIGN_OR_RETURN(const std::string kind, ReadKind());
    KVTIER_RETURN_IF_ERROR(fields_.Only("partial_rotary_factor", "1.0"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> inner, fields_.Positive("rope_theta"));
    if (inner.has_value() && theta.has_value() && *inner != *theta) {
      return Bad("rope_theta", "differs from rope_theta");
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
      KVTIER_ASSIGN_OR_RETURN(const std::optional<std::string> value, fields_.Text(key));
      if (!value.has_value()) continue;
      if (*value != "default" && *value != "linear" && *value != "llama3" && *value != "yarn") {
        return fields_.NotBuilt(key);
      }
      if (read && *value != kind) return Bad("type", "differs from rope_type");
      kind = *value;
      read = true;
    }
    return kind;
  }

  absl::StatusOr<double> Required(const std::string& key) {
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> value, fields_.Positive(key));
    if (!value.has_value()) return Bad(key, "is missing");
    return *value;
  }

  absl::Status ReadLlama3(RopeSpec& spec) {
    spec.kind = RopeKind::kLlama3;
    KVTIER_ASSIGN_OR_RETURN(spec.low_frequency_factor, Required("low_freq_factor"));
    KVTIER_ASSIGN_OR_RETURN(spec.high_frequency_factor, Required("high_freq_factor"));
    if (spec.high_frequency_factor <= spec.low_frequency_factor) {
      return Bad("high_freq_factor", "is not above low_freq_factor");
    }
    KVTIER_ASSIGN_OR_RETURN(
        spec.original_positions,
        fields_.Count("original_max_position_embeddings", limits::kContextTokensMax));
    return absl::OkStatus();
  }

  absl::Status ReadYarn(RopeSpec& spec) {
    spec.kind = RopeKind::kYarn;
    if (spec.theta <= 1) return Bad("rope_theta", "is not above 1, which yarn needs");
    KVTIER_ASSIGN_OR_RETURN(spec.original_positions,
                            fields_.Count("original_max_position_embeddings",
                                          limits::kContextTokensMax, positions_max_));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> fast, fields_.Positive("beta_fast"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> slow, fields_.Positive("beta_slow"));
    spec.beta_fast = fast.value_or(spec.beta_fast);
    spec.beta_slow = slow.value_or(spec.beta_slow);
    if (spec.beta_fast <= spec.beta_slow) return Bad("beta_fast", "is not above beta_slow");
    KVTIER_ASSIGN_OR_RETURN(spec.truncate, fields_.Flag("truncate", true));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> mscale, fields_.Positive("mscale"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> all, fields_.Positive("mscale_all_dim"));
    KVTIER_ASSIGN_OR_RETURN(const std::optional<double> given,
                            fields_.Positive("attention_factor"));
    spec.attention_factor =
        given.value_or(YarnAttentionFactor(spec.factor, mscale.value_or(0), all.value_or(0)));
    return absl::OkStatus();
  }

  absl::Status Bad(absl::string_view key, absl::string_view what) const {
    return BadConfig(absl::StrCat(fields_.prefix(), key), what);
  }

  ConfigFields fields_;
  const int64_t positions_max_;
};

// What `key` says; where it is absent, `otherwise` is all there is.
absl::StatusOr<RopeSpec> ReadRopeObject(ConfigFields& fields, const std::string& key,
                                        int64_t positions_max, std::optional<double> theta,
                                        double otherwise) {
  KVTIER_ASSIGN_OR_RETURN(std::optional<ConfigFields> object, fields.Object(key));
  if (!object.has_value()) object = ConfigFields::Nothing(fields.prefix() + key);
  return RopeReader(*std::move(object), positions_max).Read(theta, otherwise);
}

// Both kinds of layers in one object, as transformers 5 writes it for Gemma.
absl::Status ReadRopeOfKinds(ConfigFields& kinds, std::optional<double> theta, double otherwise,
                             std::optional<double> local_theta, double local_otherwise,
                             ModelConfig& config) {
  KVTIER_ASSIGN_OR_RETURN(
      config.rope, ReadRopeObject(kinds, "full_attention", config.positions_max, theta, otherwise));
  KVTIER_ASSIGN_OR_RETURN(config.sliding_rope,
                          ReadRopeObject(kinds, "sliding_attention", config.positions_max,
                                         local_theta, local_otherwise));
  return kinds.RefuseUnknown({});
}

absl::Status ReadFrequencies(ConfigFields& fields, ModelConfig& config) {
  const bool gemma = config.family == ModelFamily::kGemma3;
  const double otherwise = gemma ? 1e6 : 1e4;
  constexpr double kLocalOtherwise = 1e4;
  KVTIER_ASSIGN_OR_RETURN(const std::optional<double> theta, fields.Positive("rope_theta"));
  std::optional<double> local_theta;
  if (gemma) {
    KVTIER_ASSIGN_OR_RETURN(local_theta, fields.Positive("rope_local_base_freq"));
  }
  const bool four = fields.Has("rope_scaling");
  const bool five = fields.Has("rope_parameters");
  if (four && five && !fields.Equal("rope_scaling", "rope_parameters")) {
    return BadConfig(fields.prefix() + "rope_parameters", "differs from rope_scaling");
  }
  if (gemma && !four && fields.IsObject("rope_parameters")) {
    KVTIER_ASSIGN_OR_RETURN(std::optional<ConfigFields> kinds, fields.Object("rope_parameters"));
    return ReadRopeOfKinds(*kinds, theta, otherwise, local_theta, kLocalOtherwise, config);
  }
  KVTIER_ASSIGN_OR_RETURN(config.rope,
                          ReadRopeObject(fields, five && !four ? "rope_parameters" : "rope_scaling",
                                         config.positions_max, theta, otherwise));
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
      return BadConfig("rope_theta",
                       "and the numbers of its scaling give a frequency that is not finite");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadRope(ConfigFields& fields, ModelConfig& config) {
  KVTIER_RETURN_IF_ERROR(ReadFrequencies(fields, config));
  return CheckFrequencies(config);
}

}  // namespace kvtier
