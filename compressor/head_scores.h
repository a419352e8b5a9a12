// Static scores of whole heads (docs/recipes.md, "Head scores"): how much any context of a model
// has been seen to need a head, measured once on reference contexts. A file of them replaces the
// repeat pass when a context is compressed; the file's digest is part of the recipe, so of the key.
//
// File: safetensors with one tensor, "head_log_scores" F32 [scored layers, kv_heads], and metadata
// "format" = "kvtier-head-scores/1" and "model_digest" (64 hexadecimal digits). Other metadata is
// for people.
#ifndef KVTIER_COMPRESSOR_HEAD_SCORES_H_
#define KVTIER_COMPRESSOR_HEAD_SCORES_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/model.h"
#include "compressor/ranking.h"
#include "kvcache/ids.h"

namespace kvtier {

// A value; any thread may read it.
struct HeadScores {
  uint32_t layers = 0;  // Scored ones.
  uint32_t kv_heads = 0;
  std::vector<float> log_scores;  // [layers, kv_heads], natural log
  Digest model_digest;            // Of the model they were measured on.
  Digest file_digest;             // SHA-256 of the file they were read from; zero if from none.

  // The maximum of each head's scores over the tokens of `scores`. REQUIRES: at least one token.
  static HeadScores FromTable(const ScoreTable& scores, const Digest& model_digest);
  // Elementwise maximum with scores of another context of the same model. REQUIRES: same shape.
  void Merge(const HeadScores& other);
  // INVALID_ARGUMENT: measured on another model, or of another shape (both named).
  absl::Status CheckFits(const Model& model, const Geometry& geometry) const;
};

// NOT_FOUND: no such file. INVALID_ARGUMENT: no such scores, or one that is NaN or infinite
// (named).
absl::StatusOr<HeadScores> LoadHeadScores(const std::string& path);
// `notes` join the metadata. Errors as WriteSafetensors.
absl::Status SaveHeadScores(const std::string& path, const HeadScores& scores,
                            const std::map<std::string, std::string>& notes);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_HEAD_SCORES_H_
