#include "compressor/model_config.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// As transformers 4 writes it, with `more` keys in front (JSON, comma at the end).
std::string Config(const std::string& more = "") {
  return absl::StrCat(
      "{", more,
      R"("architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
      "intermediate_size": 96, "vocab_size": 264, "max_position_embeddings": 4096,
      "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16", "use_cache": true,
      "initializer_range": 0.02, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3],
      "transformers_version": "4.40.0", "pretraining_tp": 1, "sliding_window": null})");
}

TEST(ModelConfigTest, ReadsTransformers4) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ModelConfig config,
      ModelConfig::Parse(
          Config(R"("rope_theta": 500000.0, "rope_scaling": null, "head_dim": 32, )")));
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.layers, 2);
  EXPECT_EQ(config.q_heads, 4);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.intermediate, 96);
  EXPECT_EQ(config.vocabulary, 264);
  EXPECT_EQ(config.positions_max, 4096);
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.rms_epsilon, 1e-5f);
  EXPECT_FALSE(config.tied_embeddings);
}

TEST(ModelConfigTest, ReadsTransformers5) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const ModelConfig config,
      ModelConfig::Parse(Config(
          R"("rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "dtype": "bfloat16", )")));
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.head_dim, 16) << "hidden / heads";
}

TEST(ModelConfigTest, DerivesWhatTheForwardPassNeeds) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::Parse(Config()));
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.softmax_scale(), 0.25f);
  const RopeTable table = config.MakeRopeTable(LayerKind::kGlobal);
  ASSERT_EQ(table.inverse_frequencies.size(), 8u);
  EXPECT_EQ(table.inverse_frequencies[0], 1.0f);
  EXPECT_FLOAT_EQ(table.inverse_frequencies[4], 0.01f);
  const Geometry geometry = config.MakeGeometry(DType::kF16);
  EXPECT_EQ(geometry.layer_count(), 2u);
  EXPECT_EQ(geometry.scored_layer_count(), 2u);
  EXPECT_EQ(geometry.kv_heads, 2u);
  EXPECT_EQ(geometry.head_dim, 16u);
  EXPECT_EQ(geometry.dtype, DType::kF16);
}

TEST(ModelConfigTest, RefusesWhatIsNotBuiltByName) {
  const struct {
    const char* more;
    const char* name;
  } cases[] = {
      {R"("rope_scaling": {"rope_type": "dynamic", "factor": 8.0}, )", "rope_scaling.rope_type"},
      {R"("rope_scaling": {"type": "longrope", "factor": 2.0}, )", "rope_scaling.type"},
      {R"("rope_scaling": {"factor": 2.0}, )", "rope_scaling.factor"},
      {R"("rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}, )",
       "rope_scaling.beta_fast"},
      {R"("rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}, )",
       "rope_parameters.rope_type"},
      {R"("rope_parameters": {"partial_rotary_factor": 0.5}, )", "partial_rotary_factor"},
      {R"("attention_bias": true, )", "attention_bias"},
      {R"("mlp_bias": true, )", "mlp_bias"},
      {R"("quantization_config": {"bits": 4}, )", "quantization_config"},
      {R"("layer_types": ["full_attention", "sliding_attention"], )", "layer_types"},
      {R"("num_experts": 8, )", "num_experts"},
      {R"("attn_logit_softcapping": 50.0, )", "attn_logit_softcapping"},
      {R"("pruned_heads": {"0": [1]}, )", "pruned_heads"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(ModelConfig::Parse(Config(c.more)),
                StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(c.name)))
        << c.more;
  }
  // Keys that Config has, with another value.
  const struct {
    const char* from;
    const char* to;
    const char* name;
  } replaced[] = {
      {R"("model_type": "llama")", R"("model_type": "qwen3_moe")", "model_type"},
      {R"(LlamaForCausalLM)", R"(LlamaForSequenceClassification)", "architectures"},
      {R"("silu")", R"("gelu")", "hidden_act"},
      {R"("sliding_window": null)", R"("sliding_window": 4096)", "sliding_window"},
      {R"("pretraining_tp": 1)", R"("pretraining_tp": 2)", "pretraining_tp"},
  };
  for (const auto& c : replaced) {
    EXPECT_THAT(ModelConfig::Parse(absl::StrReplaceAll(Config(), {{c.from, c.to}})),
                StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(c.name)));
  }
}

// transformers has these biases whatever the key says; other readers take `false` for none.
TEST(ModelConfigTest, Qwen2HasItsBiasesSaidOrNot) {
  const auto qwen = [](const std::string& more) {
    return absl::StrReplaceAll(Config(more), {{R"("llama")", R"("qwen2")"},
                                              {"LlamaForCausalLM", "Qwen2ForCausalLM"},
                                              {R"("pretraining_tp": 1, )", ""}});
  };
  for (const char* more : {"", R"("attention_bias": true, )", R"("attention_bias": null, )"}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfig::Parse(qwen(more)));
    EXPECT_TRUE(config.has_qkv_bias());
  }
  EXPECT_THAT(ModelConfig::Parse(qwen(R"("attention_bias": false, )")),
              StatusIs(absl::StatusCode::kUnimplemented,
                       HasSubstr("config.json: attention_bias = false is not built")));
}

TEST(ModelConfigTest, RefusesMalformedNumbersByName) {
  const struct {
    const char* from;
    const char* to;
    const char* name;
  } cases[] = {
      {R"("hidden_size": 64)", R"("hidden_size": 0)", "hidden_size"},
      {R"("hidden_size": 64)", R"("hidden_size": -64)", "hidden_size"},
      {R"("hidden_size": 64)", R"("hidden_size": 64.5)", "hidden_size"},
      {R"("hidden_size": 64)", R"("hidden_size": "64")", "hidden_size"},
      {R"("hidden_size": 64)", R"("hidden_size": 18446744073709551615)", "hidden_size"},
      {R"("hidden_size": 64)", R"("hidden_size": 62)", "hidden_size"},
      {R"("hidden_size": 64,)", "", "hidden_size"},
      {R"("num_hidden_layers": 2)", R"("num_hidden_layers": 100000)", "num_hidden_layers"},
      {R"("num_key_value_heads": 2)", R"("num_key_value_heads": 3)", "num_key_value_heads"},
      {R"("vocab_size": 264)", R"("vocab_size": 4294967296)", "vocab_size"},
      {R"("rms_norm_eps": 1e-5)", R"("rms_norm_eps": 0)", "rms_norm_eps"},
      {R"("rms_norm_eps": 1e-5)", R"("rms_norm_eps": 1e-5, "rope_theta": -1)", "rope_theta"},
      {R"("rms_norm_eps": 1e-5)", R"("rms_norm_eps": 1e-5, "head_dim": 31)", "head_dim"},
      {R"("rms_norm_eps": 1e-5)", R"("rms_norm_eps": 1e-5, "tie_word_embeddings": 1)",
       "tie_word_embeddings"},
      {R"("rms_norm_eps": 1e-5)",
       R"("rms_norm_eps": 1e-5, "rope_theta": 1, "rope_parameters": {"rope_theta": 2})",
       "rope_theta"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(ModelConfig::Parse(absl::StrReplaceAll(Config(), {{c.from, c.to}})),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.name)))
        << c.to;
  }
  for (const char* text : {"", "[]", "{", "null", "{\"a\": 1, \"a\": 2}", "{\"a\": 1e999}"}) {
    EXPECT_THAT(ModelConfig::Parse(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace kvtier
