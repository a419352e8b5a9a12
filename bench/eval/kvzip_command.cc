// kvtier-eval kvzip: one document after KVzip, as a table.
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/one_document.h"

namespace kvtier {

absl::Status KvzipCommand() {
  Progress progress;
  KVTIER_ASSIGN_OR_RETURN(const OneDocument document, LoadOneDocument(progress));
  progress.Start("scoring", 0);
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, document.evaluation->KvzipScores());
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, document.evaluation->Pack(scores));
  progress.Finish();
  int kinds[2] = {0, 0};
  for (const Question& question : document.questions.questions) {
    ++kinds[static_cast<int>(question.kind)];
  }
  std::string table = absl::StrFormat("%s: %d tokens, %d bytes of KV cache\n%-8s%14s%10s%14s%14s\n",
                                      document.questions.document, document.context.size(),
                                      object.manifest->dense_bytes(), "ratio", "bytes", "exact",
                                      "suffix", "lookup");
  for (Ratio ratio : document.ratios) {
    KVTIER_ASSIGN_OR_RETURN(const ExactCount count,
                            CountExact(document, object, ratio, "KVzip", progress));
    absl::StrAppendFormat(&table, "%-8s%14d%10d%14s%14s\n", ratio.ToString(), count.bytes,
                          count.exact, absl::StrCat(count.by_kind[0], " of ", kinds[0]),
                          absl::StrCat(count.by_kind[1], " of ", kinds[1]));
  }
  std::cout << table;
  return absl::OkStatus();
}

}  // namespace kvtier
