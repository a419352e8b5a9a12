#include "bench/eval/context_scores.h"

#include <utility>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/eval/command_line.h"
#include "compressor/cpu_backend.h"
#include "compressor/token_file.h"

ABSL_FLAG(
    std::vector<std::string>, token_ids, {},
    "score, head-scores: files of token ids (a JSON array, or raw u32 in a file named *.u32), "
    "separated by commas");
ABSL_FLAG(std::string, system_ids, "",
          "score, head-scores: file of system prompt ids, instead of the profile's prefix");
ABSL_FLAG(std::string, head_scores, "", "score: file that `head-scores` wrote, for recipe head");
ABSL_FLAG(std::string, kv_dtype, "f32", "score, head-scores: element type of the cache");
ABSL_FLAG(std::string, compute, "f32",
          "score, head-scores: f32, or auto: what a compressor uses on this machine");

namespace kvtier {

absl::StatusOr<ContextScores> LoadContextScores() {
  ContextScores scores;
  KVTIER_ASSIGN_OR_RETURN(const std::string folder, ModelFlag());
  const std::vector<std::string> files = absl::GetFlag(FLAGS_token_ids);
  if (files.empty()) return absl::InvalidArgumentError("--token_ids is missing");
  for (const std::string& file : files) {
    KVTIER_ASSIGN_OR_RETURN(scores.contexts.emplace_back(), ReadTokenIds(file));
  }
  if (const std::string file = absl::GetFlag(FLAGS_system_ids); !file.empty()) {
    KVTIER_ASSIGN_OR_RETURN(scores.system, ReadTokenIds(file));
  }
  KVTIER_ASSIGN_OR_RETURN(scores.options.kv_dtype, DTypeFromName(absl::GetFlag(FLAGS_kv_dtype)));
  const std::string compute = absl::GetFlag(FLAGS_compute);
  if (compute != "f32" && compute != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("--compute is '", compute, "'; it must be f32 or auto"));
  }
  scores.backend =
      MakeCpuBackend({.threads = ThreadsFlag(),
                      .compute = compute == "f32" ? CpuCompute::kF32 : CpuCompute::kAuto});
  KVTIER_ASSIGN_OR_RETURN(scores.model, Model::Load(folder, *scores.backend));
  if (const std::string file = absl::GetFlag(FLAGS_head_scores); !file.empty()) {
    KVTIER_ASSIGN_OR_RETURN(HeadScores heads, LoadHeadScores(file));
    scores.options.head_scores = std::make_shared<const HeadScores>(std::move(heads));
  }
  return scores;
}

absl::StatusOr<ScoredContext> ScoreOneContext(const ContextScores& scores, size_t index,
                                              const std::string& recipe, Progress& progress) {
  const Pipeline pipeline(*scores.model, scores.options);
  CompressInput input;
  input.context = scores.contexts[index];
  input.system = scores.system;
  input.recipe = recipe;
  CompressStage stage = CompressStage::kPack;
  uint64_t done = 0;
  const auto on_progress = [&](const CompressProgress& p) {
    if (p.stage != stage) {
      progress.Start(std::string(CompressStageName(p.stage)), p.tokens_total);
      stage = p.stage;
      done = 0;
    }
    for (; done < p.tokens_done; ++done) progress.Step();
  };
  KVTIER_ASSIGN_OR_RETURN(ScoredContext scored, pipeline.Score(input, on_progress, CancelToken()));
  progress.Finish();
  return scored;
}

}  // namespace kvtier
