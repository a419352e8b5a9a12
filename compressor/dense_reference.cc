#include "compressor/dense_reference.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/dense_kernels.h"
#include "compressor/safetensors.h"

namespace kvtier {
namespace {

// Rows of one pass while prefilling: bounds the activations.
constexpr size_t kPrefillRows = 128;

absl::StatusOr<std::vector<float>> ReadTensor(const SafetensorsFile& file, const std::string& name,
                                              const std::vector<int64_t>& shape) {
  const auto it = file.entries().find(name);
  if (it == file.entries().end() || it->second.shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor \"", name, "\" is missing or of another shape"));
  }
  const SafetensorsEntry& entry = it->second;
  size_t count = 1;
  for (int64_t extent : shape) count *= static_cast<size_t>(extent);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const std::byte* at = entry.bytes.data();
    if (entry.dtype == "F32") {
      values[i] = LoadLittleEndian<float>(at + 4 * i);
    } else if (entry.dtype == "BF16") {
      values[i] = static_cast<float>(bfloat16::FromBits(LoadLittleEndian<uint16_t>(at + 2 * i)));
    } else if (entry.dtype == "F16") {
      values[i] = static_cast<float>(float16::FromBits(LoadLittleEndian<uint16_t>(at + 2 * i)));
    } else {
      return absl::UnimplementedError(
          absl::StrCat("tensor \"", name, "\" has dtype ", entry.dtype));
    }
  }
  return values;
}

float RoundTo(DType dtype, float value) {
  if (dtype == DType::kBf16) return static_cast<float>(bfloat16(value));
  if (dtype == DType::kF16) return static_cast<float>(float16(value));
  return value;
}

std::vector<float> Normalised(const std::vector<float>& x, const std::vector<float>& weight,
                              float epsilon) {
  const size_t width = weight.size();
  std::vector<float> y(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += double{x[row + i]} * x[row + i];
    const float factor = static_cast<float>(1 / std::sqrt(squares / double(width) + epsilon));
    for (size_t i = 0; i < width; ++i) y[row + i] = x[row + i] * factor * weight[i];
  }
  return y;
}

void AddTo(std::vector<float>& x, const std::vector<float>& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// y[rows, out] = x[rows, in] w[out, in]^T
std::vector<float> Project(const std::vector<float>& x, const std::vector<float>& w, int64_t rows) {
  const int64_t in = static_cast<int64_t>(x.size()) / rows;
  const int64_t out = static_cast<int64_t>(w.size()) / in;
  std::vector<float> y(static_cast<size_t>(rows * out));
  ChooseDenseKernels().linear(x.data(), w.data(), rows, in, out, y.data());
  return y;
}

// Turns each pair (d, d + D/2) of each head by position * frequency[d].
void Rotate(std::vector<float>& x, int64_t rows, const std::vector<float>& frequencies,
            int64_t first_position) {
  const int64_t half = static_cast<int64_t>(frequencies.size());
  const int64_t width = static_cast<int64_t>(x.size()) / rows;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t d = 0; d < half; ++d) {
      const float angle =
          static_cast<float>(first_position + row) * frequencies[static_cast<size_t>(d)];
      const float cosine = std::cos(angle);
      const float sine = std::sin(angle);
      for (int64_t head = 0; head < width; head += 2 * half) {
        float* pair = &x[static_cast<size_t>(row * width + head + d)];
        const float a = pair[0];
        const float b = pair[half];
        pair[0] = a * cosine - b * sine;
        pair[half] = b * cosine + a * sine;
      }
    }
  }
}

}  // namespace

struct DenseReferenceDecoder::Layer {
  std::vector<float> attention_norm, mlp_norm;
  std::vector<float> q, k, v, o, gate, up, down;
  // [kv_heads][length, head_dim] each, already rounded to the cache's dtype.
  std::vector<std::vector<float>> keys, values;
};

DenseReferenceDecoder::DenseReferenceDecoder() = default;
DenseReferenceDecoder::~DenseReferenceDecoder() = default;

absl::StatusOr<std::unique_ptr<DenseReferenceDecoder>> DenseReferenceDecoder::Create(
    const std::string& folder, DType kv_dtype) {
  const std::filesystem::path root(folder);
  std::ifstream in(root / "config.json", std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(folder, ": no config.json"));
  std::string text(limits::kConfigJsonBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));

  std::unique_ptr<DenseReferenceDecoder> decoder(new DenseReferenceDecoder);
  KVTIER_ASSIGN_OR_RETURN(decoder->config_, ModelConfig::Parse(text));
  const ModelConfig& c = decoder->config_;
  if (c.family != ModelFamily::kLlama || c.rope.kind != RopeKind::kDefault) {
    return absl::UnimplementedError(absl::StrCat(
        "dense reference: reads Llama with unscaled RoPE only, not ", ModelFamilyName(c.family),
        c.rope.kind == RopeKind::kDefault ? "" : " with scaled RoPE"));
  }
  decoder->kv_dtype_ = kv_dtype;
  for (int64_t d = 0; d < c.head_dim; d += 2) {
    decoder->frequencies_.push_back(
        1.0f / std::pow(static_cast<float>(c.rope.theta),
                        static_cast<float>(d) / static_cast<float>(c.head_dim)));
  }
  KVTIER_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open((root / "model.safetensors").string()));
  const auto read = [&file](const std::string& name, std::vector<int64_t> shape,
                            std::vector<float>* to) {
    auto values = ReadTensor(*file, name, shape);
    if (values.ok()) *to = *std::move(values);
    return values.status();
  };
  const std::string table = "model.embed_tokens.weight";
  KVTIER_RETURN_IF_ERROR(read(table, {c.vocabulary, c.hidden}, &decoder->embedding_));
  KVTIER_RETURN_IF_ERROR(read(c.tied_embeddings ? table : "lm_head.weight",
                              {c.vocabulary, c.hidden}, &decoder->head_));
  KVTIER_RETURN_IF_ERROR(read("model.norm.weight", {c.hidden}, &decoder->final_norm_));
  const int64_t q_width = c.q_heads * c.head_dim;
  const int64_t kv_width = c.kv_heads * c.head_dim;
  for (int64_t index = 0; index < c.layers; ++index) {
    const std::string at = absl::StrCat("model.layers.", index, ".");
    Layer w;
    KVTIER_RETURN_IF_ERROR(read(at + "input_layernorm.weight", {c.hidden}, &w.attention_norm));
    KVTIER_RETURN_IF_ERROR(read(at + "post_attention_layernorm.weight", {c.hidden}, &w.mlp_norm));
    KVTIER_RETURN_IF_ERROR(read(at + "self_attn.q_proj.weight", {q_width, c.hidden}, &w.q));
    KVTIER_RETURN_IF_ERROR(read(at + "self_attn.k_proj.weight", {kv_width, c.hidden}, &w.k));
    KVTIER_RETURN_IF_ERROR(read(at + "self_attn.v_proj.weight", {kv_width, c.hidden}, &w.v));
    KVTIER_RETURN_IF_ERROR(read(at + "self_attn.o_proj.weight", {c.hidden, q_width}, &w.o));
    KVTIER_RETURN_IF_ERROR(read(at + "mlp.gate_proj.weight", {c.intermediate, c.hidden}, &w.gate));
    KVTIER_RETURN_IF_ERROR(read(at + "mlp.up_proj.weight", {c.intermediate, c.hidden}, &w.up));
    KVTIER_RETURN_IF_ERROR(read(at + "mlp.down_proj.weight", {c.hidden, c.intermediate}, &w.down));
    w.keys.resize(static_cast<size_t>(c.kv_heads));
    w.values.resize(static_cast<size_t>(c.kv_heads));
    decoder->layers_.push_back(std::move(w));
  }
  return decoder;
}

absl::Status DenseReferenceDecoder::CheckIds(std::span<const uint32_t> ids) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < config_.vocabulary) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("dense reference: id ", ids[i], " at index ", i));
  }
  if (static_cast<int64_t>(ids.size()) > config_.positions_max - length_) {
    return absl::InvalidArgumentError("dense reference: more tokens than positions");
  }
  return absl::OkStatus();
}

void DenseReferenceDecoder::Append(std::span<const uint32_t> ids) {
  const int64_t rows = static_cast<int64_t>(ids.size());
  const int64_t dim = config_.head_dim;
  const int64_t group = config_.q_heads / config_.kv_heads;
  x_.clear();
  for (uint32_t id : ids) {
    const auto row = embedding_.begin() + int64_t{id} * config_.hidden;
    x_.insert(x_.end(), row, row + config_.hidden);
  }
  std::vector<float> logits(static_cast<size_t>(4 * (length_ + 1 + rows)));
  for (Layer& w : layers_) {
    std::vector<float> normed = Normalised(x_, w.attention_norm, config_.rms_epsilon);
    std::vector<float> q = Project(normed, w.q, rows);
    std::vector<float> k = Project(normed, w.k, rows);
    const std::vector<float> v = Project(normed, w.v, rows);
    Rotate(q, rows, frequencies_, length_);
    Rotate(k, rows, frequencies_, length_);
    std::vector<float> attended(q.size());
    for (int64_t h = 0; h < config_.kv_heads; ++h) {
      std::vector<float>& keys = w.keys[static_cast<size_t>(h)];
      std::vector<float>& values = w.values[static_cast<size_t>(h)];
      keys.resize(static_cast<size_t>(length_ * dim));  // Drops the rows of an earlier question.
      values.resize(static_cast<size_t>(length_ * dim));
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t d = 0; d < dim; ++d) {
          const auto at = static_cast<size_t>((row * config_.kv_heads + h) * dim + d);
          keys.push_back(RoundTo(kv_dtype_, k[at]));
          values.push_back(RoundTo(kv_dtype_, v[at]));
        }
      }
      for (int64_t g = 0; g < group; ++g) {
        const int64_t column = (h * group + g) * dim;
        ChooseDenseKernels().attend(
            q.data() + column, keys.data(), values.data(), rows, config_.q_heads * dim, length_ + 1,
            dim, config_.softmax_scale(), logits.data(), attended.data() + column);
      }
    }
    AddTo(x_, Project(attended, w.o, rows));
    normed = Normalised(x_, w.mlp_norm, config_.rms_epsilon);
    std::vector<float> gate = Project(normed, w.gate, rows);
    const std::vector<float> up = Project(normed, w.up, rows);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
    AddTo(x_, Project(gate, w.down, rows));
  }
  length_ += rows;
}

std::vector<float> DenseReferenceDecoder::Head(int64_t first, int64_t rows) {
  const std::vector<float> last(x_.begin() + first * config_.hidden, x_.end());
  return Project(Normalised(last, final_norm_, config_.rms_epsilon), head_, rows - first);
}

absl::Status DenseReferenceDecoder::Prefill(std::span<const uint32_t> ids) {
  context_length_ = 0;
  length_ = 0;
  KVTIER_RETURN_IF_ERROR(CheckIds(ids));
  for (size_t begin = 0; begin < ids.size(); begin += kPrefillRows) {
    Append(ids.subspan(begin, std::min(kPrefillRows, ids.size() - begin)));
  }
  context_length_ = length_;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint32_t>> DenseReferenceDecoder::Answer(
    std::span<const uint32_t> question, int64_t count, std::span<const uint32_t> stop_ids) {
  length_ = context_length_;
  KVTIER_RETURN_IF_ERROR(CheckIds(question));
  if (question.empty()) return absl::InvalidArgumentError("dense reference: empty question");
  std::vector<uint32_t> answer;
  Append(question);
  while (static_cast<int64_t>(answer.size()) < count) {
    const int64_t rows = static_cast<int64_t>(x_.size()) / config_.hidden;
    const std::vector<float> logits = Head(rows - 1, rows);
    const auto best = std::max_element(logits.begin(), logits.end());  // The first of equals.
    const uint32_t id = static_cast<uint32_t>(best - logits.begin());
    answer.push_back(id);
    if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) break;
    if (static_cast<int64_t>(answer.size()) == count || length_ == config_.positions_max) break;
    Append({&id, 1});
  }
  length_ = context_length_;
  return answer;
}

absl::StatusOr<std::vector<float>> DenseReferenceDecoder::Logits(std::span<const uint32_t> tokens) {
  length_ = context_length_;
  KVTIER_RETURN_IF_ERROR(CheckIds(tokens));
  if (tokens.empty()) return std::vector<float>();
  Append(tokens);
  const std::vector<float> logits = Head(0, static_cast<int64_t>(tokens.size()));
  length_ = context_length_;
  return logits;
}

}  // namespace kvtier
