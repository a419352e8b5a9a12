// One document of kvtier-eval quality: compressed by every method, asked everything at every ratio.
#ifndef KVTIER_BENCH_QUALITY_DOCUMENT_RUN_H_
#define KVTIER_BENCH_QUALITY_DOCUMENT_RUN_H_

#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/experiment.h"
#include "bench/quality/methods.h"
#include "bench/quality/tasks.h"
#include "compressor/model.h"
#include "compressor/recipe_scores.h"
#include "kvcache/bands.h"

namespace kvtier {

// The same for all documents. Does not own the model.
struct DocumentPlan {
  const Model& model;
  BandEdges edges;  // The ratios; at most limits::kBandsMax.
  std::vector<const Method*> methods;
  RecipeInputs inputs = {};  // For recipes kvzip+ and head.
};

// The cells of one document; the same list, in the same order, for every document of a plan.
struct DocumentAnswers {
  std::vector<Cell> cells;
  std::vector<double> depth;  // [samples]
};

// Any thread may call. Errors as Evaluation::Create; INVALID_ARGUMENT: no byte vocabulary.
absl::StatusOr<DocumentAnswers> AskDocument(const DocumentPlan& plan, const TaskDocument& document);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_DOCUMENT_RUN_H_
