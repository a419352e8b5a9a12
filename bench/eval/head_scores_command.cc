// kvtier-eval head-scores: the scores that recipe head ranks by, from one or more contexts.
#include <iostream>
#include <map>
#include <optional>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/command_line.h"
#include "bench/eval/context_scores.h"
#include "compressor/head_scores.h"

namespace kvtier {

absl::Status HeadScoresCommand() {
  const std::string out = absl::GetFlag(FLAGS_out);
  if (out.empty()) return absl::InvalidArgumentError("--out is missing");
  KVTIER_ASSIGN_OR_RETURN(const ContextScores inputs, LoadContextScores());
  Progress progress;
  std::optional<HeadScores> all;
  std::string lengths;
  for (size_t i = 0; i < inputs.contexts.size(); ++i) {
    KVTIER_ASSIGN_OR_RETURN(const ScoredContext scored,
                            ScoreOneContext(inputs, i, "kvzip", progress));
    const HeadScores heads = HeadScores::FromTable(scored.scores, inputs.model->digest());
    if (all.has_value()) {
      all->Merge(heads);
    } else {
      all = heads;
    }
    absl::StrAppend(&lengths, lengths.empty() ? "" : ",", inputs.contexts[i].size());
  }
  const std::map<std::string, std::string> notes = {
      {"model", inputs.model->name()},
      {"recipe", "kvzip/1"},
      {"prompt_profile_digest", inputs.model->profile().ComputeDigest().ToHex()},
      {"context_tokens", lengths}};
  KVTIER_RETURN_IF_ERROR(SaveHeadScores(out, *all, notes));
  KVTIER_ASSIGN_OR_RETURN(const HeadScores saved, LoadHeadScores(out));
  std::cout << absl::StrFormat("%d layers x %d heads from %d contexts; recipe head/1;scores=%s\n",
                               saved.layers, saved.kv_heads, inputs.contexts.size(),
                               saved.file_digest.ToHex());
  return absl::OkStatus();
}

}  // namespace kvtier
