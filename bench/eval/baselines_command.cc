// kvtier-eval baselines: the full cache, random eviction, and SnapKV fitted to the first question,
// on one document.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/command_line.h"
#include "bench/eval/one_document.h"
#include "bench/report.h"

ABSL_FLAG(uint32_t, random_seeds, 5, "baselines: random evictions to average over");

namespace kvtier {

absl::Status BaselinesCommand() {
  Progress progress;
  KVTIER_ASSIGN_OR_RETURN(const OneDocument document, LoadOneDocument(progress));
  const Evaluation& evaluation = *document.evaluation;
  const std::vector<Question>& questions = document.questions.questions;
  Baselines out;
  out.document = document.questions.document;
  out.tokens = document.context.size();
  out.questions = static_cast<uint32_t>(questions.size());
  std::vector<uint32_t> tokens = document.model->profile().prefix;
  tokens.insert(tokens.end(), document.context.begin(), document.context.end());
  progress.Start("full cache", questions.size());
  KVTIER_ASSIGN_OR_RETURN(
      out.full, CountFull(absl::GetFlag(FLAGS_model), document.model->profile(), tokens, questions,
                          ThreadsFlag(), [&] { progress.Step(); }));
  progress.Finish();

  for (Ratio ratio : document.ratios) out.rows.emplace_back().ratio = ratio.ToDouble();
  for (uint32_t seed = 1; seed <= std::max(1u, absl::GetFlag(FLAGS_random_seeds)); ++seed) {
    KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                            evaluation.Pack(evaluation.RandomScores(seed)));
    for (size_t i = 0; i < document.ratios.size(); ++i) {
      KVTIER_ASSIGN_OR_RETURN(const ExactCount count,
                              CountExact(document, object, document.ratios[i],
                                         absl::StrCat("random ", seed), progress));
      out.rows[i].random_by_seed.push_back(count.exact);
    }
  }
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable snapkv,
                          evaluation.SnapKvScores(questions[0].question_ids));
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, evaluation.Pack(snapkv));
  for (size_t i = 0; i < document.ratios.size(); ++i) {
    KVTIER_ASSIGN_OR_RETURN(const ExactCount count,
                            CountExact(document, object, document.ratios[i], "SnapKV", progress));
    out.rows[i].snapkv = count.exact;
  }
  return WriteOut(BaselinesToJson(out));
}

}  // namespace kvtier
