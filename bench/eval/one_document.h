// What the commands `baselines` and `kvzip` share: a model, one document and its questions, all
// from flags, and the full cache of the document.
#ifndef KVTIER_BENCH_EVAL_ONE_DOCUMENT_H_
#define KVTIER_BENCH_EVAL_ONE_DOCUMENT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/eval/progress.h"
#include "bench/evaluation.h"
#include "bench/questions.h"
#include "compressor/backend.h"
#include "compressor/model.h"
#include "kvcache/bands.h"

namespace kvtier {

struct OneDocument {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::vector<uint32_t> context;
  QuestionSet questions;
  std::vector<Ratio> ratios;
  std::unique_ptr<Evaluation> evaluation;
};

// Reads --model, --document, --questions and --ratios, and prefills.
// INVALID_ARGUMENT: a flag or a file makes no sense (named); others as Model::Load.
absl::StatusOr<OneDocument> LoadOneDocument(Progress& progress);

// Questions answered from the bands of `object` that serve `ratio`, as a stage of `progress`.
absl::StatusOr<ExactCount> CountExact(const OneDocument& document, const CompressedObject& object,
                                      Ratio ratio, std::string stage, Progress& progress);

}  // namespace kvtier

#endif  // KVTIER_BENCH_EVAL_ONE_DOCUMENT_H_
