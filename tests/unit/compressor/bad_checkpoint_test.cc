// Every tiny checkpoint of tests/golden/families again with one thing broken. A user who brings a
// checkpoint that is damaged, or of a kind that is not built, gets a message that names the key or
// the tensor, with both shapes where two are at odds; never a crash, never silently other numbers.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/model.h"
#include "compressor/reference_backend.h"
#include "compressor/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kNotBuilt = absl::StatusCode::kUnimplemented;

constexpr char kIndex[] = "model.safetensors.index.json";
// What a tensor of another shape than config.json implies is answered with.
constexpr char kBothShapes[] =
    "tensor \"[^\"]+\" (has shape \\[[0-9, ]+\\], not|is missing, its shape would be) "
    "\\[[0-9, ]+\\]";

const fs::path kFamilies = SourcePath("tests/golden/families");

std::vector<std::string> Families() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFamilies)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// A copy of one checkpoint in a folder of its own. `config_` starts out as its config.json; Load
// writes it first.
class BadCheckpointTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const auto& entry : fs::directory_iterator(kFamilies / GetParam())) {
      const std::string name = entry.path().filename().string();
      if (name == "expected.safetensors") continue;
      fs::copy_file(entry.path(), dir_.path() / name);
      if (absl::EndsWith(name, ".safetensors")) weights_.push_back(dir_.File(name));
    }
    std::sort(weights_.begin(), weights_.end());
    good_ = json::parse(ReadFile(dir_.File("config.json")));
    config_ = good_;
  }

  absl::StatusOr<std::unique_ptr<Model>> Load() {
    WriteFile(dir_.File("config.json"), config_.dump());
    return Model::Load(dir_.path().string(), *backend_);
  }
  // Loads with `key` of the text model's configuration set (null: removed), the rest as it was.
  absl::StatusOr<std::unique_ptr<Model>> LoadWith(const std::string& key, const json& value) {
    config_ = good_;
    Set(key, value);
    return Load();
  }
  void Set(const std::string& key, const json& value) {
    if (value.is_null()) {
      Text().erase(key);
    } else {
      Text()[key] = value;
    }
  }

  bool nested() const { return good_.contains("text_config"); }
  json& Text() { return nested() ? config_["text_config"] : config_; }
  // What the unbroken checkpoint means, defaults included.
  ModelConfig Good() const { return *ModelConfig::Parse(good_.dump()); }
  bool Is(const std::string& prefix) const { return absl::StartsWith(GetParam(), prefix); }
  bool sharded() const { return weights_.size() > 1; }
  // `count` layers, in layer_types too where the configuration has them.
  void SetLayers(int64_t count) {
    Set("num_hidden_layers", count);
    if (!Text().contains("layer_types")) return;
    json types = json::array();
    for (int64_t layer = 0; layer < count; ++layer) {
      types.push_back(layer % 2 == 0 ? "full_attention" : Text()["layer_types"][layer % 2]);
    }
    Set("layer_types", types);
  }

  TempDir dir_;
  std::vector<std::string> weights_;
  json good_;
  json config_;
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend();
};

INSTANTIATE_TEST_SUITE_P(Families, BadCheckpointTest, ::testing::ValuesIn(Families()),
                         [](const auto& family) { return family.param; });

const char* const kSizes[] = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim",    "intermediate_size", "vocab_size",          "max_position_embeddings"};

TEST_P(BadCheckpointTest, IsGoodBeforeItIsBroken) {
  KVTIER_EXPECT_OK(Load());
  EXPECT_GE(Families().size(), 10u);
}

TEST_P(BadCheckpointTest, SizesThatAreNoSize) {
  std::vector<std::string> keys(std::begin(kSizes), std::end(kSizes));
  if (Is("gemma3")) {
    keys.insert(keys.end(), {"sliding_window", "sliding_window_pattern"});
  }
  const json values[] = {0,   -1,   1.5,        "64",     true, json::array({64}), json::object(),
                         1e9, 1e99, UINT64_MAX, INT64_MIN};
  for (const std::string& key : keys) {
    for (const json& value : values) {
      EXPECT_THAT(LoadWith(key, value),
                  StatusIs(kInvalid, HasSubstr((nested() ? "text_config." : "") + key)))
          << key << ": " << value;
    }
  }
}

TEST_P(BadCheckpointTest, SizesThatAreMissing) {
  const ModelConfig good = Good();
  for (const std::string key : kSizes) {
    const auto model = LoadWith(key, nullptr);
    if (!model.ok()) {
      // The family's default, if there is one, contradicts layer_types or a tensor.
      EXPECT_THAT(model,
                  StatusIs(kInvalid, AnyOf(HasSubstr(key), HasSubstr("layer_types"),
                                           HasSubstr("head_dim"), ContainsRegex(kBothShapes))))
          << key;
      continue;
    }
    // Only where the default says the same, or the length that nothing in the weights depends on.
    ModelConfig read = (*model)->config();
    if (Is("gemma3")) read.positions_max = good.positions_max;
    EXPECT_EQ(read.MakeGeometry(DType::kF32), good.MakeGeometry(DType::kF32)) << key;
    EXPECT_EQ(read.positions_max, good.positions_max) << key;
    EXPECT_EQ(read.hidden, good.hidden) << key;
    EXPECT_EQ(read.q_heads, good.q_heads) << key;
  }
}

TEST_P(BadCheckpointTest, SizesThatTheTensorsContradict) {
  const ModelConfig good = Good();
  const auto shape = [](int64_t rows, int64_t cols) {
    return absl::StrCat("[", rows, ", ", cols, "]");
  };
  // By 2 per head, since some have their head_dim from it.
  const int64_t hidden = good.hidden + 2 * good.q_heads;
  EXPECT_THAT(LoadWith("hidden_size", hidden),
              StatusIs(kInvalid, AllOf(HasSubstr("embed_tokens.weight\" has shape"),
                                       HasSubstr(shape(good.vocabulary, good.hidden)),
                                       HasSubstr(shape(good.vocabulary, hidden)))));
  EXPECT_THAT(LoadWith("hidden_size", good.hidden + 1),
              StatusIs(kInvalid, AnyOf(HasSubstr("hidden_size"), ContainsRegex(kBothShapes))));
  EXPECT_THAT(LoadWith("vocab_size", good.vocabulary + 1),
              StatusIs(kInvalid, AllOf(HasSubstr("embed_tokens.weight\" has shape"),
                                       HasSubstr(shape(good.vocabulary, good.hidden)),
                                       HasSubstr(shape(good.vocabulary + 1, good.hidden)))));
  EXPECT_THAT(LoadWith("intermediate_size", good.intermediate + 1),
              StatusIs(kInvalid, AllOf(HasSubstr("layers.0.mlp.gate_proj.weight\" has shape"),
                                       HasSubstr(shape(good.intermediate, good.hidden)),
                                       HasSubstr(shape(good.intermediate + 1, good.hidden)))));
  EXPECT_THAT(
      LoadWith("head_dim", good.head_dim + 2),
      StatusIs(kInvalid, AllOf(HasSubstr("layers.0.self_attn.q_"), ContainsRegex(kBothShapes))));
  EXPECT_THAT(LoadWith("head_dim", good.head_dim + 1), StatusIs(kInvalid, HasSubstr("head_dim")));
  EXPECT_THAT(
      LoadWith("num_attention_heads", 2 * good.q_heads),
      StatusIs(kInvalid, AllOf(HasSubstr("layers.0.self_attn."), ContainsRegex(kBothShapes))));
  EXPECT_THAT(LoadWith("num_key_value_heads", good.kv_heads == 1 ? good.q_heads : 1),
              StatusIs(kInvalid,
                       AllOf(HasSubstr("layers.0.self_attn.k_proj."), ContainsRegex(kBothShapes))));
  EXPECT_THAT(LoadWith("num_key_value_heads", good.q_heads + 1),
              StatusIs(kInvalid, HasSubstr("num_key_value_heads")));

  config_ = good_;
  SetLayers(good.layers + 1);
  EXPECT_THAT(Load(), StatusIs(kInvalid, AllOf(HasSubstr(absl::StrCat("layers.", good.layers, ".")),
                                               HasSubstr("is missing, its shape would be ["))));
  config_ = good_;
  SetLayers(good.layers - 1);
  EXPECT_THAT(Load(),
              StatusIs(kInvalid, AllOf(HasSubstr(absl::StrCat("layers.", good.layers - 1, ".")),
                                       HasSubstr("shape ["), HasSubstr("is unexpected"))));
}

TEST_P(BadCheckpointTest, LayerTypes) {
  const int64_t layers = Good().layers;
  const json full = "full_attention";
  const json sliding = "sliding_attention";
  for (const json& types :
       {json::array(), json("full_attention"), json(std::vector(layers - 1, full)),
        json(std::vector(layers + 1, full)), json::object(), json(7)}) {
    EXPECT_THAT(LoadWith("layer_types", types), StatusIs(kInvalid, HasSubstr("layer_types")))
        << types;
  }
  for (const json& kind : {json("chunked_attention"), json("linear_attention"), json(7), json(true),
                           json(nullptr), json::array({full})}) {
    json types(std::vector(layers, full));
    types[1] = kind;
    EXPECT_THAT(LoadWith("layer_types", types), StatusIs(kNotBuilt, HasSubstr("layer_types")))
        << types;
  }
  // A family with windows would have nothing to score; the others are told that they have none.
  EXPECT_THAT(LoadWith("layer_types", std::vector(layers, sliding)),
              StatusIs(Is("gemma3") ? kInvalid : kNotBuilt, HasSubstr("layer_types")));
}

TEST_P(BadCheckpointTest, WhatIsNotBuiltIsRefusedByName) {
  struct Case {
    const char* key;
    json value;
  };
  std::vector<Case> cases = {
      {"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}},
      {"quantization_config", json::object()},
      {"num_local_experts", 8},
      {"num_experts", 8},
      {"num_experts_per_tok", 2},
      {"moe_intermediate_size", 64},
      {"decoder_sparse_step", 1},
      {"attn_logit_softcapping", 50.0},
      {"final_logit_softcapping", 30.0},
      {"use_bidirectional_attention", true},
      {"partial_rotary_factor", 0.5},
      {"partial_rotary_factor", "1.0"},
      {"attention_bias", !Is("qwen2")},
      {"mlp_bias", true},
      {"attention_chunk_size", 8192},
      {"no_rope_layers", json::array({1, 0})},
      {"is_encoder_decoder", true},
      {"add_cross_attention", true},
      {"chunk_size_feed_forward", 16},
      {"pruned_heads", {{"0", {1}}}},
      {"embedding_multiplier", 12.0},
      {"a_key_of_the_future", 1},
      {"model_type", "mixtral"},
      {"model_type", "qwen2_moe"},
      {"model_type", "qwen3_next"},
      {"model_type", "gemma2"},
      {"model_type", 7},
      {"model_type", json::array({"llama"})},
      {Is("gemma3") ? "hidden_activation" : "hidden_act", "gelu"},
      {Is("gemma3") ? "hidden_activation" : "hidden_act", 7},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(LoadWith(c.key, c.value), StatusIs(kNotBuilt, HasSubstr(c.key)))
        << c.key << ": " << c.value;
  }
  for (const json& value : {json::array({"LlamaForSequenceClassification"}), json::array(),
                            json("LlamaForCausalLM"), json::array({"a", "b"}), json(7)}) {
    config_ = good_;
    config_["architectures"] = value;  // Outside, where it is written.
    EXPECT_THAT(Load(), StatusIs(kNotBuilt, HasSubstr("architectures"))) << value;
  }
  if (!nested()) return;
  for (const char* key : {"quantization_config", "a_key_of_the_future", "num_experts"}) {
    config_ = good_;
    config_[key] = 7;
    EXPECT_THAT(Load(), StatusIs(kNotBuilt, HasSubstr(key))) << "beside text_config";
  }
  for (const json& value : {json(nullptr), json(7), json("x"), json::array()}) {
    config_ = good_;
    config_["text_config"] = value;
    EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("text_config"))) << value;
  }
}

TEST_P(BadCheckpointTest, Rope) {
  // The place where this configuration's global layers have theirs.
  const bool five = Text().contains("rope_parameters");
  const std::string key = five ? "rope_parameters" : "rope_scaling";
  const bool by_kind = five && Is("gemma3");
  const auto load = [&](const json& rope) {
    return LoadWith(key, by_kind ? json{{"full_attention", rope}} : rope);
  };
  const struct {
    json rope;
    absl::StatusCode code;
    const char* says;
  } cases[] = {
      {{{"rope_type", "dynamic"}, {"factor", 8.0}}, kNotBuilt, "rope_type = \"dynamic\""},
      {{{"rope_type", "longrope"}, {"factor", 8.0}}, kNotBuilt, "rope_type = \"longrope\""},
      {{{"type", "su"}, {"factor", 8.0}}, kNotBuilt, "type = \"su\""},
      {{{"rope_type", "mrope"}}, kNotBuilt, "rope_type = \"mrope\""},
      {{{"rope_type", 7}}, kInvalid, "rope_type"},
      {{{"rope_type", "linear"}, {"type", "yarn"}, {"factor", 2.0}}, kInvalid, "type differs"},
      {{{"rope_type", "linear"}}, kInvalid, "factor is missing"},
      {{{"rope_type", "linear"}, {"factor", 0}}, kInvalid, "factor"},
      {{{"rope_type", "linear"}, {"factor", -2.0}}, kInvalid, "factor"},
      {{{"rope_type", "linear"}, {"factor", "8"}}, kInvalid, "factor"},
      {{{"rope_type", "linear"}, {"factor", 1e-42}}, kInvalid, "factor"},
      {{{"rope_type", "linear"}, {"factor", 1e300}}, kInvalid, "factor"},
      {{{"rope_type", "default"}, {"factor", 8.0}}, kNotBuilt, "factor"},
      {{{"rope_type", "default"}, {"partial_rotary_factor", 0.25}}, kNotBuilt, "partial_rotary"},
      {{{"rope_type", "default"}, {"mrope_section", {1, 2}}}, kNotBuilt, "mrope_section"},
      {{{"rope_type", "llama3"}, {"factor", 8.0}}, kInvalid, "low_freq_factor is missing"},
      {{{"rope_type", "llama3"},
        {"factor", 8.0},
        {"low_freq_factor", 4.0},
        {"high_freq_factor", 4.0},
        {"original_max_position_embeddings", 64}},
       kInvalid,
       "high_freq_factor"},
      {{{"rope_type", "llama3"},
        {"factor", 8.0},
        {"low_freq_factor", 1.0},
        {"high_freq_factor", 4.0}},
       kInvalid,
       "original_max_position_embeddings is missing"},
      {{{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", 1.0}}, kInvalid, "beta_fast"},
      {{{"rope_type", "yarn"}, {"factor", 4.0}, {"attention_factor", 0}},
       kInvalid,
       "attention_factor"},
      {{{"rope_type", "yarn"}, {"factor", 4.0}, {"truncate", 1}}, kInvalid, "truncate"},
      {{{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 0}},
       kInvalid,
       "original_max_position_embeddings"},
      {{{"rope_type", "yarn"}, {"factor", 4.0}, {"finetuned", true}}, kNotBuilt, "finetuned"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(load(c.rope), StatusIs(c.code, AllOf(HasSubstr(key), HasSubstr(c.says)))) << c.rope;
  }
  for (const json& value : {json("linear"), json::array(), json(7)}) {
    EXPECT_THAT(LoadWith(key, value), StatusIs(kInvalid, HasSubstr(key))) << value;
  }
  if (by_kind) {
    EXPECT_THAT(LoadWith(key, {{"chunked_attention", {{"rope_type", "default"}}}}),
                StatusIs(kNotBuilt, HasSubstr("rope_parameters.chunked_attention")));
    EXPECT_THAT(LoadWith(key, {{"sliding_attention", {{"rope_theta", -1}}}}),
                StatusIs(kInvalid, HasSubstr("rope_parameters.sliding_attention.rope_theta")));
  }
  const std::vector<json> thetas = {0, -1e4, "1e4", 1e-300, 1e300};
  for (const json& theta : thetas) {
    const std::string base = Is("gemma3") && !five ? "rope_local_base_freq" : "rope_theta";
    for (const std::string& name : {std::string("rope_theta"), base}) {
      EXPECT_THAT(LoadWith(name, theta), StatusIs(kInvalid, HasSubstr(name))) << theta;
    }
  }
  // Each number alone is one of fp32, their quotient is not.
  EXPECT_THAT(load({{"rope_type", "linear"}, {"factor", 2e-38}, {"rope_theta", 1e-30}}),
              StatusIs(kInvalid, AnyOf(HasSubstr("frequency that is not finite"),
                                       HasSubstr("rope_theta differs"))));
}

TEST_P(BadCheckpointTest, NumbersAndFlags) {
  std::vector<std::string> numbers = {"rms_norm_eps"};
  if (Is("gemma3")) numbers.push_back("query_pre_attn_scalar");
  for (const std::string& key : numbers) {
    for (const json& value : {json(0), json(-1), json("1e-6"), json(true), json(1e-300),
                              json(1e300), json::array({1})}) {
      EXPECT_THAT(LoadWith(key, value), StatusIs(kInvalid, HasSubstr(key))) << value;
    }
  }
  std::vector<std::string> flags = {"tie_word_embeddings"};
  if (Is("qwen")) flags.push_back("use_sliding_window");
  for (const std::string& key : flags) {
    for (const json& value : {json(1), json("true"), json::array({true})}) {
      EXPECT_THAT(LoadWith(key, value), StatusIs(kInvalid, HasSubstr(key))) << value;
    }
  }
  if (Is("qwen")) {  // Windows are wanted, and how far they go is not said.
    config_ = good_;
    Set("sliding_window", nullptr);
    Set("use_sliding_window", true);
    Set("layer_types", nullptr);
    EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("sliding_window is missing")));
    Set("sliding_window", 64);
    Set("max_window_layers", -1);
    EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("max_window_layers")));
  }
}

TEST_P(BadCheckpointTest, TiedEmbeddingsFlipped) {
  const ModelConfig good = Good();
  Set("tie_word_embeddings", !good.tied_embeddings);
  if (nested()) {
    EXPECT_THAT(Load(), StatusIs(kInvalid, AnyOf(HasSubstr("text_config.tie_word_embeddings"),
                                                 HasSubstr("lm_head.weight"))))
        << "only inside";
    config_["tie_word_embeddings"] = !good.tied_embeddings;
  }
  EXPECT_THAT(Load(), StatusIs(kInvalid, AllOf(HasSubstr("lm_head.weight"),
                                               HasSubstr(good.tied_embeddings
                                                             ? "is missing, its shape would be"
                                                             : "differs from the embedding"))));
}

TEST_P(BadCheckpointTest, EveryTensorWithANumberThatIsNotFinite) {
  const std::map<std::string, std::vector<std::string>> patterns = {
      {"F32", {std::string("\x00\x00\xc0\x7f", 4), std::string("\x00\x00\x80\xff", 4)}},
      {"BF16", {"\xc0\x7f", "\x80\xff"}},
      {"F16", {std::string("\x00\x7e", 2), std::string("\x00\xfc", 2)}}};  // NaN, -infinity
  size_t broken = 0;
  for (const std::string& path : weights_) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(path));
    const std::string good = ReadFile(path);
    size_t count = 0;
    for (const auto& [name, entry] : file->entries()) {
      const std::string& bits = patterns.at(entry.dtype)[++count % 2];
      const int64_t elements = static_cast<int64_t>(entry.bytes.size() / bits.size());
      const int64_t at = count % 3 == 0 ? 0 : elements - 1;
      std::string bad = good;
      bad.replace(static_cast<size_t>(entry.bytes.data() - file->bytes().data()) +
                      static_cast<size_t>(at) * bits.size(),
                  bits.size(), bits);
      // Another file under the name: the mapped one stays as it was.
      fs::remove(path);
      WriteFile(path, bad);
      if (absl::StrContains(name, "vision_tower.") ||
          absl::StrContains(name, "multi_modal_projector.")) {
        if (count % 20 == 0) {
          KVTIER_EXPECT_OK(Load()) << name << " is not read";
        }
        continue;
      }
      ++broken;
      EXPECT_THAT(Load(),
                  StatusIs(kInvalid, AllOf(HasSubstr(absl::StrCat("tensor \"", name, "\"")),
                                           HasSubstr(absl::StrCat("element ", at, " is NaN")))));
    }
    fs::remove(path);
    WriteFile(path, good);
  }
  EXPECT_GE(broken, 20u);
  KVTIER_EXPECT_OK(Load());
}

TEST_P(BadCheckpointTest, DamagedFiles) {
  for (const std::string& path : weights_) {
    const std::string good = ReadFile(path);
    const std::string name = fs::path(path).filename().string();
    for (size_t size : {good.size() - 1, good.size() / 2, size_t{100}, size_t{7}, size_t{0}}) {
      TruncateFile(path, size);
      EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr(name))) << "cut to " << size;
      WriteFile(path, good);
    }
    WriteFile(path, good + "x");
    EXPECT_THAT(Load(), StatusIs(kInvalid, AllOf(HasSubstr(name), HasSubstr("1 bytes behind"))));
    WriteFile(path, good);
  }
  KVTIER_EXPECT_OK(Load());
  for (const char* text : {"", "{", "[]", "null", "\xff\xfe", "{\"model_type\": \"llama\"", "7"}) {
    WriteFile(dir_.File("config.json"), text);
    EXPECT_THAT(Model::Load(dir_.path().string(), *backend_),
                StatusIs(kInvalid, HasSubstr("config.json")))
        << text;
  }
}

TEST_P(BadCheckpointTest, Index) {
  if (!sharded()) GTEST_SKIP() << "one file";
  const json good = json::parse(ReadFile(dir_.File(kIndex)));
  const auto load = [&](const std::function<void(json&)>& edit) {
    json index = good;
    edit(index["weight_map"]);
    WriteFile(dir_.File(kIndex), index.dump());
    return Load();
  };
  const std::string tensor = good["weight_map"].begin().key();
  const std::string file = good["weight_map"].begin().value();
  const std::string other = fs::path(weights_.back()).filename() == file
                                ? fs::path(weights_.front()).filename()
                                : fs::path(weights_.back()).filename();
  const std::string quoted = absl::StrCat("\"", tensor, "\"");
  KVTIER_EXPECT_OK(load([](json&) {}));
  EXPECT_THAT(load([&](json& map) { map[tensor] = other; }),
              StatusIs(kInvalid, AllOf(HasSubstr(quoted), HasSubstr(file), HasSubstr(other))));
  EXPECT_THAT(load([&](json& map) { map["model.ghost"] = other; }),
              StatusIs(kInvalid, AllOf(HasSubstr("\"model.ghost\""), HasSubstr(other))));
  EXPECT_THAT(load([&](json& map) { map.erase(tensor); }),
              StatusIs(kInvalid, AllOf(HasSubstr(quoted), HasSubstr(kIndex))));
  for (const char* name : {"../config.safetensors", "/etc/passwd.safetensors", "a/b.safetensors",
                           "config.json", "", "..", "x\\y.safetensors"}) {
    EXPECT_THAT(load([&](json& map) { map[tensor] = name; }),
                StatusIs(kInvalid, AllOf(HasSubstr(tensor), HasSubstr("same folder"))))
        << name;
  }
  EXPECT_THAT(load([&](json& map) { map[tensor] = 7; }), StatusIs(kInvalid, HasSubstr(tensor)));
  EXPECT_THAT(load([](json& map) { map = json::object(); }),
              StatusIs(kInvalid, HasSubstr("weight_map is empty")));
  EXPECT_THAT(load([](json& map) { map = json::array(); }),
              StatusIs(kInvalid, HasSubstr("weight_map")));
  EXPECT_THAT(load([](json& map) { map = nullptr; }), StatusIs(kInvalid, HasSubstr("weight_map")));
  EXPECT_THAT(load([](json& map) { map["model.ghost"] = "ghost.safetensors"; }),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("ghost.safetensors")));
  WriteFile(dir_.File(kIndex), good.dump());
  for (const std::string& path : weights_) {
    const std::string content = ReadFile(path);
    fs::remove(path);
    EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kNotFound,
                                 AllOf(HasSubstr(kIndex), HasSubstr(fs::path(path).filename()))));
    WriteFile(path, content);
  }
  KVTIER_EXPECT_OK(Load());
}

}  // namespace
}  // namespace kvtier
