#include "compressor/head_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <span>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "compressor/host_backend.h"
#include "compressor/safetensors.h"
#include "compressor/safetensors_writer.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

constexpr char kTensor[] = "head_log_scores";
constexpr char kFormat[] = "kvtier-head-scores/1";

}  // namespace

HeadScores HeadScores::FromTable(const ScoreTable& scores, const Digest& model_digest) {
  KVTIER_CHECK_GT(scores.tokens, uint64_t{0});
  HeadScores heads;
  heads.layers = scores.layers;
  heads.kv_heads = scores.kv_heads;
  heads.model_digest = model_digest;
  for (auto head = scores.log_scores.begin(); head != scores.log_scores.end();
       head += static_cast<ptrdiff_t>(scores.tokens)) {
    heads.log_scores.push_back(
        *std::max_element(head, head + static_cast<ptrdiff_t>(scores.tokens)));
  }
  return heads;
}

void HeadScores::Merge(const HeadScores& other) {
  KVTIER_CHECK(layers == other.layers && kv_heads == other.kv_heads);
  for (size_t i = 0; i < log_scores.size(); ++i) {
    log_scores[i] = std::max(log_scores[i], other.log_scores[i]);
  }
}

absl::Status HeadScores::CheckFits(const Model& model, const Geometry& geometry) const {
  if (model_digest != model.digest()) {
    return absl::InvalidArgumentError(absl::StrCat("head scores are of a model with digest ",
                                                   model_digest.ToHex(), ", ", model.name(),
                                                   " has ", model.digest().ToHex()));
  }
  if (layers != geometry.scored_layer_count() || kv_heads != geometry.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head scores have the shape [", layers, ", ", kv_heads, "], model ", model.name(), " has [",
        geometry.scored_layer_count(), ", ", geometry.kv_heads, "]"));
  }
  return absl::OkStatus();
}

absl::StatusOr<HeadScores> LoadHeadScores(const std::string& path) {
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  const auto bad = [&path](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", parts...));
  };
  const auto format = file->metadata().find("format");
  if (format == file->metadata().end() || format->second != kFormat) {
    return bad("no file of head scores: metadata \"format\" is not ", kFormat);
  }
  HeadScores scores;
  const auto digest = file->metadata().find("model_digest");
  if (digest == file->metadata().end()) return bad("no metadata \"model_digest\"");
  const absl::StatusOr<Digest> model_digest = Digest::FromHex(digest->second);
  if (!model_digest.ok()) return bad("model_digest: ", model_digest.status().message());
  scores.model_digest = *model_digest;
  const auto tensor = file->entries().find(kTensor);
  if (tensor == file->entries().end()) return bad("no tensor ", kTensor);
  const SafetensorsEntry& entry = tensor->second;
  if (entry.dtype != "F32" || entry.shape.size() != 2 || entry.shape[0] > limits::kLayersMax ||
      entry.shape[1] > limits::kKvHeadsMax) {
    return bad(kTensor, " is no F32 matrix of layers and KV heads");
  }
  scores.layers = static_cast<uint32_t>(entry.shape[0]);
  scores.kv_heads = static_cast<uint32_t>(entry.shape[1]);
  scores.log_scores.resize(entry.bytes.size() / sizeof(float));
  LoadFloats(entry.bytes.data(), DType::kF32, scores.log_scores);
  for (size_t i = 0; i < scores.log_scores.size(); ++i) {
    if (std::isfinite(scores.log_scores[i])) continue;
    return bad("score of layer ", i / scores.kv_heads, ", head ", i % scores.kv_heads, " is ",
               scores.log_scores[i]);
  }
  scores.file_digest = ComputeSha256(file->bytes());
  return scores;
}

absl::Status SaveHeadScores(const std::string& path, const HeadScores& scores,
                            const std::map<std::string, std::string>& notes) {
  std::map<std::string, std::string> metadata = notes;
  metadata["format"] = kFormat;
  metadata["model_digest"] = scores.model_digest.ToHex();
  const SafetensorsEntry entry = {.dtype = "F32",
                                  .shape = {scores.layers, scores.kv_heads},
                                  .bytes = AsBytes(std::span<const float>(scores.log_scores))};
  return WriteSafetensors(path, {{kTensor, entry}}, metadata);
}

}  // namespace kvtier
