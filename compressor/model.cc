#include "compressor/model.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/host_backend.h"
#include "compressor/safetensors.h"
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

absl::StatusOr<std::vector<fs::path>> ListWeightFiles(const fs::path& folder) {
  std::error_code error;
  const fs::path single = folder / "model.safetensors";
  if (fs::exists(single, error)) return std::vector<fs::path>{single};
  std::vector<fs::path> files;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    if (it->path().extension() == ".safetensors") files.push_back(it->path());
  }
  if (error) return absl::NotFoundError(absl::StrCat(folder.string(), ": ", error.message()));
  if (files.empty()) {
    return absl::NotFoundError(absl::StrCat(folder.string(), ": no *.safetensors file"));
  }
  if (files.size() > limits::kCheckpointShardsMax) {
    return absl::InvalidArgumentError(absl::StrCat(folder.string(), ": ", files.size(),
                                                   " weight files, at most ",
                                                   limits::kCheckpointShardsMax));
  }
  std::sort(files.begin(), files.end());
  return files;
}

void HashFile(absl::string_view name, ByteSpan content, Sha256* hash) {
  std::string framed;
  ByteWriter writer(&framed);
  writer.WriteU64(name.size());
  writer.WriteBytes(name);
  writer.WriteU64(content.size());
  hash->Update(framed);
  hash->Update(content);
}

// The tensors of all weight files. Every one must be taken exactly once, or it is unexpected.
class Checkpoint {
 public:
  static absl::StatusOr<Checkpoint> Open(const fs::path& folder) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<fs::path> paths, ListWeightFiles(folder));
    Checkpoint checkpoint;
    for (const fs::path& path : paths) {
      KVTIER_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path.string()));
      for (const auto& [name, entry] : file->entries()) {
        if (!checkpoint.tensors_.emplace(name, &entry).second) {
          return absl::InvalidArgumentError(
              absl::StrCat(path.string(), ": tensor \"", name, "\" is in another file too"));
        }
      }
      checkpoint.files_.push_back(std::move(file));
    }
    return checkpoint;
  }

  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  bool Has(const std::string& name) const { return tensors_.count(name) > 0; }

  struct Taken {
    std::span<const std::byte> bytes;
    DType dtype;
  };
  absl::StatusOr<Taken> Take(const std::string& name, const std::vector<int64_t>& shape) {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" is missing"));
    }
    const SafetensorsEntry& entry = *it->second;
    if (entry.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" has shape [",
                                                     absl::StrJoin(entry.shape, ", "), "], not [",
                                                     absl::StrJoin(shape, ", "), "]"));
    }
    Taken taken{.bytes = entry.bytes, .dtype = DType::kF32};
    if (entry.dtype == "BF16") {
      taken.dtype = DType::kBf16;
    } else if (entry.dtype == "F16") {
      taken.dtype = DType::kF16;
    } else if (entry.dtype != "F32") {
      return absl::UnimplementedError(
          absl::StrCat("tensor \"", name, "\" has dtype ", entry.dtype));
    }
    taken_.insert(name);
    return taken;
  }

  absl::Status ExpectNoneLeft() const {
    for (const auto& [name, entry] : tensors_) {
      // Old checkpoints carry the RoPE frequencies, which follow from the configuration.
      if (taken_.count(name) > 0 || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" is unexpected"));
    }
    return absl::OkStatus();
  }

 private:
  Checkpoint() = default;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsEntry*> tensors_;
  std::set<std::string> taken_;
};

// Reads tensors onto the backend and adds up what they take.
struct Loader {
  Checkpoint& checkpoint;
  Backend& backend;
  uint64_t bytes = 0;

  absl::StatusOr<std::unique_ptr<LinearWeights>> Linear(const std::string& name, int64_t out,
                                                        int64_t in) {
    KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken taken, checkpoint.Take(name, {out, in}));
    KVTIER_ASSIGN_OR_RETURN(auto weights, backend.PrepareLinear(taken.bytes, taken.dtype, out, in));
    bytes += weights->bytes();
    return weights;
  }

  absl::StatusOr<Tensor> Norm(const std::string& name, int64_t size) {
    KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken taken, checkpoint.Take(name, {size}));
    std::vector<float> values(static_cast<size_t>(size));
    LoadFloats(taken.bytes.data(), taken.dtype, values);
    KVTIER_ASSIGN_OR_RETURN(Tensor tensor, backend.Allocate(DType::kF32, 1, size));
    KVTIER_RETURN_IF_ERROR(backend.Upload(AsBytes(std::span<const float>(values)), tensor));
    bytes += tensor.bytes();
    return tensor;
  }

  absl::StatusOr<Tensor> Table(const std::string& name, int64_t rows, int64_t cols) {
    KVTIER_ASSIGN_OR_RETURN(const Checkpoint::Taken taken, checkpoint.Take(name, {rows, cols}));
    KVTIER_ASSIGN_OR_RETURN(Tensor tensor, backend.Allocate(taken.dtype, rows, cols));
    KVTIER_RETURN_IF_ERROR(backend.Upload(taken.bytes, tensor));
    bytes += tensor.bytes();
    return tensor;
  }

  absl::StatusOr<LayerWeights> Layer(const ModelConfig& config, int64_t index) {
    const std::string at = absl::StrCat("model.layers.", index, ".");
    const int64_t hidden = config.hidden;
    const int64_t q_width = config.q_heads * config.head_dim;
    const int64_t kv_width = config.kv_heads * config.head_dim;
    const int64_t mid = config.intermediate;
    LayerWeights w;
    KVTIER_ASSIGN_OR_RETURN(w.attention_norm, Norm(at + "input_layernorm.weight", hidden));
    KVTIER_ASSIGN_OR_RETURN(w.mlp_norm, Norm(at + "post_attention_layernorm.weight", hidden));
    KVTIER_ASSIGN_OR_RETURN(w.q, Linear(at + "self_attn.q_proj.weight", q_width, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.k, Linear(at + "self_attn.k_proj.weight", kv_width, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.v, Linear(at + "self_attn.v_proj.weight", kv_width, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.o, Linear(at + "self_attn.o_proj.weight", hidden, q_width));
    KVTIER_ASSIGN_OR_RETURN(w.gate, Linear(at + "mlp.gate_proj.weight", mid, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.up, Linear(at + "mlp.up_proj.weight", mid, hidden));
    KVTIER_ASSIGN_OR_RETURN(w.down, Linear(at + "mlp.down_proj.weight", hidden, mid));
    return w;
  }

  // The LM head, or the embedding once more where they are tied. A tied checkpoint may carry a copy
  // under the head's name, which must then be one.
  absl::StatusOr<std::unique_ptr<LinearWeights>> LmHead(const ModelConfig& config,
                                                        const std::string& embedding) {
    const std::string name = "lm_head.weight";
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
    return Linear(embedding, config.vocabulary, config.hidden);
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
  model->rope_ = config.MakeRopeTable();

  KVTIER_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(root));
  Loader loader{.checkpoint = checkpoint, .backend = backend};
  const std::string embedding = "model.embed_tokens.weight";
  KVTIER_ASSIGN_OR_RETURN(model->embedding_,
                          loader.Table(embedding, config.vocabulary, config.hidden));
  for (int64_t index = 0; index < config.layers; ++index) {
    KVTIER_ASSIGN_OR_RETURN(LayerWeights layer, loader.Layer(config, index));
    model->layers_.push_back(std::move(layer));
  }
  KVTIER_ASSIGN_OR_RETURN(model->final_norm_, loader.Norm("model.norm.weight", config.hidden));
  KVTIER_ASSIGN_OR_RETURN(model->lm_head_, loader.LmHead(config, embedding));
  KVTIER_RETURN_IF_ERROR(checkpoint.ExpectNoneLeft());
  model->weight_bytes_ = loader.bytes;

  Sha256 hash;
  HashFile("config.json", AsBytes(config_text), &hash);
  for (const auto& file : checkpoint.files()) {
    HashFile(fs::path(file->path()).filename().string(), file->bytes(), &hash);
  }
  model->digest_ = Digest(hash.Finish());
  return model;
}

}  // namespace kvtier
