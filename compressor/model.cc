#include "compressor/model.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/activations.h"
#include "compressor/checkpoint.h"
#include "compressor/host_backend.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<std::string> ReadConfig(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path.string(), ": cannot be read"));
  std::string text(limits::kConfigJsonBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

// Before the bytes of each file: its name and its size.
void HashHeader(absl::string_view name, ByteSpan content, Sha256* hash) {
  std::string framed;
  ByteWriter writer(&framed);
  writer.WriteU64(name.size());
  writer.WriteBytes(name);
  writer.WriteU64(content.size());
  hash->Update(framed);
}

// As HashText, in pieces that leave memory again.
void HashFile(const SafetensorsFile& file, Sha256* hash) {
  constexpr size_t kPieceBytes = size_t{16} << 20;
  ByteSpan rest = file.bytes();
  HashHeader(fs::path(file.path()).filename().string(), rest, hash);
  while (!rest.empty()) {
    const ByteSpan piece = rest.first(std::min(kPieceBytes, rest.size()));
    hash->Update(piece);
    file.Release(piece);
    rest = rest.subspan(piece.size());
  }
}

void HashText(absl::string_view name, absl::string_view text, Sha256* hash) {
  HashHeader(name, AsBytes(text), hash);
  hash->Update(AsBytes(text));
}

// Where a checkpoint keeps its parts. A model for text and images has the text model inside, under
// one name in transformers 4 and another in 5.
struct TensorNames {
  std::string base;  // Before embed_tokens, layers and norm.
  std::string lm_head;
  std::vector<absl::string_view> ignored;  // Beginnings of names that only images need.
};
TensorNames NamesOf(const ModelConfig& config, const Checkpoint& checkpoint) {
  if (!config.multimodal) return {.base = "model.", .lm_head = "lm_head.weight", .ignored = {}};
  if (checkpoint.Has("language_model.model.embed_tokens.weight")) {
    return {.base = "language_model.model.",
            .lm_head = "language_model.lm_head.weight",
            .ignored = {"vision_tower.", "multi_modal_projector."}};
  }
  return {.base = "model.language_model.",
          .lm_head = "lm_head.weight",
          .ignored = {"model.vision_tower.", "model.multi_modal_projector."}};
}

// Reads tensors onto the backend and adds up what they take.
struct Loader {
  Checkpoint& checkpoint;
  Backend& backend;
  uint64_t bytes = 0;

  absl::StatusOr<std::unique_ptr<LinearWeights>> Linear(const std::string& name, int64_t out,
                                                        int64_t in) {
    KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken taken, checkpoint.Take(name, {out, in}));
    KVTIER_ASSIGN_OR_RETURN(auto weights, backend.PrepareLinear(taken.bytes, taken.dtype, out, in));
    checkpoint.Release(taken);
    bytes += weights->bytes();
    return weights;
  }

  // One row, `offset` added to each element: a norm or a bias.
  absl::StatusOr<Tensor> Row(const std::string& name, int64_t size, float offset, DType dtype) {
    KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken taken, checkpoint.Take(name, {size}));
    std::vector<float> values(static_cast<size_t>(size));
    LoadFloats(taken.bytes.data(), taken.dtype, values);
    for (float& value : values) value += offset;
    KVTIER_ASSIGN_OR_RETURN(Tensor tensor, backend.Allocate(dtype, 1, size));
    KVTIER_RETURN_IF_ERROR(UploadFloats(backend, values, tensor));
    bytes += tensor.bytes();
    return tensor;
  }

  absl::StatusOr<Tensor> Table(const std::string& name, int64_t rows, int64_t cols) {
    KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken taken, checkpoint.Take(name, {rows, cols}));
    KVTIER_ASSIGN_OR_RETURN(Tensor tensor, backend.Allocate(taken.dtype, rows, cols));
    KVTIER_RETURN_IF_ERROR(backend.Upload(taken.bytes, tensor));
    checkpoint.Release(taken);
    bytes += tensor.bytes();
    return tensor;
  }

  absl::StatusOr<LayerWeights> Layer(const ModelConfig& config, const std::string& at) {
    const int64_t hidden = config.hidden;
    const int64_t q_width = config.q_heads * config.head_dim;
    const int64_t kv_width = config.kv_heads * config.head_dim;
    const int64_t mid = config.intermediate;
    const auto norm = [&](absl::string_view name, int64_t size) {
      return Row(absl::StrCat(at, name, ".weight"), size, config.norm_weight_offset(), DType::kF32);
    };
    const auto bias = [&](absl::string_view name, int64_t size) {
      return Row(absl::StrCat(at, "self_attn.", name, "_proj.bias"), size, 0,
                 backend.activation_dtype());
    };
    LayerWeights w;
    KVTIER_ASSIGN_OR_RETURN(w.attention_norm, norm("input_layernorm", hidden));
    if (config.has_output_norms()) {
      KVTIER_ASSIGN_OR_RETURN(w.attention_out_norm, norm("post_attention_layernorm", hidden));
      KVTIER_ASSIGN_OR_RETURN(w.mlp_norm, norm("pre_feedforward_layernorm", hidden));
      KVTIER_ASSIGN_OR_RETURN(w.mlp_out_norm, norm("post_feedforward_layernorm", hidden));
    } else {
      KVTIER_ASSIGN_OR_RETURN(w.mlp_norm, norm("post_attention_layernorm", hidden));
    }
    if (config.has_qk_norm()) {
      KVTIER_ASSIGN_OR_RETURN(w.q_norm, norm("self_attn.q_norm", config.head_dim));
      KVTIER_ASSIGN_OR_RETURN(w.k_norm, norm("self_attn.k_norm", config.head_dim));
    }
    if (config.has_qkv_bias()) {
      KVTIER_ASSIGN_OR_RETURN(w.q_bias, bias("q", q_width));
      KVTIER_ASSIGN_OR_RETURN(w.k_bias, bias("k", kv_width));
      KVTIER_ASSIGN_OR_RETURN(w.v_bias, bias("v", kv_width));
    }
    KVTIER_ASSIGN_OR_RETURN(w.q, Linear(at + "self_attn.q_proj.weight", q_width, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.k, Linear(at + "self_attn.k_proj.weight", kv_width, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.v, Linear(at + "self_attn.v_proj.weight", kv_width, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.o, Linear(at + "self_attn.o_proj.weight", hidden, q_width));
    KVTIER_ASSIGN_OR_RETURN(w.gate, Linear(at + "mlp.gate_proj.weight", mid, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.up, Linear(at + "mlp.up_proj.weight", mid, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.down, Linear(at + "mlp.down_proj.weight", hidden, mid));
    return w;
  }

  // The LM head, which shares the embedding's memory where they are tied. A tied checkpoint may
  // carry a copy under the head's name, which must then be one.
  absl::StatusOr<std::unique_ptr<LinearWeights>> LmHead(const ModelConfig& config,
                                                        const std::string& name,
                                                        const std::string& embedding,
                                                        const Tensor& loaded_embedding) {
    if (!config.tied_embeddings) return Linear(name, config.vocabulary, config.hidden);
    if (checkpoint.Has(name)) {
      const std::vector<int64_t> shape{config.vocabulary, config.hidden};
      KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken head, checkpoint.Take(name, shape));
      KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken table, checkpoint.Take(embedding, shape));
      if (head.dtype != table.dtype ||
          std::memcmp(head.bytes.data(), table.bytes.data(), head.bytes.size()) != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "tensor \"", name, "\" differs from the embedding that config.json ties it to"));
      }
    }
    return backend.ShareLinear(loaded_embedding);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const std::string& folder, Backend& backend) {
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  if (error) return absl::NotFoundError(absl::StrCat(folder, ": ", error.message()));

  std::unique_ptr<Model> model(new Model);
  model->name_ = root.filename().string();
  model->backend_ = &backend;
  KVTIER_ASSIGN_OR_RETURN(const std::string config_text, ReadConfig(root / "config.json"));
  KVTIER_ASSIGN_OR_RETURN(model->config_, ModelConfig::Parse(config_text));
  const ModelConfig& config = model->config_;
  KVTIER_ASSIGN_OR_RETURN(model->profile_,
                          PromptProfile::Load((root / "kvtier_prompt_profile.json").string()));
  KVTIER_RETURN_IF_ERROR(model->profile_.Validate(config.vocabulary));
  model->rope_ = config.MakeRopeTable(LayerKind::kGlobal);
  model->sliding_rope_ = config.MakeRopeTable(LayerKind::kSliding);

  KVTIER_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(root.string()));
  const TensorNames names = NamesOf(config, checkpoint);
  Loader loader{.checkpoint = checkpoint, .backend = backend};
  const std::string embedding = names.base + "embed_tokens.weight";
  KVTIER_ASSIGN_OR_RETURN(model->embedding_,
                          loader.Table(embedding, config.vocabulary, config.hidden));
  // Early: the largest tensors are packed while little else is in memory.
  KVTIER_ASSIGN_OR_RETURN(model->lm_head_,
                          loader.LmHead(config, names.lm_head, embedding, model->embedding_));
  for (int64_t index = 0; index < config.layers; ++index) {
    KVTIER_ASSIGN_OR_RETURN(LayerWeights layer,
                            loader.Layer(config, absl::StrCat(names.base, "layers.", index, ".")));
    model->layers_.push_back(std::move(layer));
  }
  KVTIER_ASSIGN_OR_RETURN(model->final_norm_, loader.Row(names.base + "norm.weight", config.hidden,
                                                         config.norm_weight_offset(), DType::kF32));
  KVTIER_RETURN_IF_ERROR(checkpoint.ExpectNoneLeft(names.ignored));
  model->weight_bytes_ = loader.bytes;

  Sha256 hash;
  HashText("config.json", config_text, &hash);
  for (const auto& file : checkpoint.files()) HashFile(*file, &hash);
  model->digest_ = Digest(hash.Finish());
  return model;
}

}  // namespace kvtier
