// What the commands `score` and `head-scores` share: a model, contexts from files of token ids, and
// the pipeline's scores of them. Unlike a compressor these commands compute in fp32 and keep the
// cache in fp32 unless told otherwise, since their results are compared with other programs'.
#ifndef KVTIER_BENCH_EVAL_CONTEXT_SCORES_H_
#define KVTIER_BENCH_EVAL_CONTEXT_SCORES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/eval/progress.h"
#include "compressor/backend.h"
#include "compressor/head_scores.h"
#include "compressor/model.h"
#include "compressor/pipeline.h"

namespace kvtier {

struct ContextScores {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::vector<std::vector<uint32_t>> contexts;  // One per file of --token_ids.
  std::optional<std::vector<uint32_t>> system;  // --system_ids
  PipelineOptions options;
};

// Reads --model, --token_ids, --system_ids, --head_scores, --kv_dtype, --compute and --threads.
// INVALID_ARGUMENT: a flag or a file makes no sense (named); others as Model::Load and
// LoadHeadScores.
absl::StatusOr<ContextScores> LoadContextScores();

// Scores of contexts[index] by `recipe`, as stages of `progress`. Errors as Pipeline::Score.
absl::StatusOr<ScoredContext> ScoreOneContext(const ContextScores& scores, size_t index,
                                              const std::string& recipe, Progress& progress);

}  // namespace kvtier

#endif  // KVTIER_BENCH_EVAL_CONTEXT_SCORES_H_
