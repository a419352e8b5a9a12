#include "bench/eval/one_document.h"

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/eval/command_line.h"
#include "compressor/cpu_backend.h"

namespace kvtier {

absl::StatusOr<OneDocument> LoadOneDocument(Progress& progress) {
  OneDocument document;
  KVTIER_ASSIGN_OR_RETURN(document.ratios, RatiosFlag({"0.6", "0.3", "0.1"}));
  KVTIER_ASSIGN_OR_RETURN(const std::string json,
                          ReadWhole("questions", absl::GetFlag(FLAGS_questions)));
  KVTIER_ASSIGN_OR_RETURN(document.questions, QuestionsFromJson(json));
  if (document.questions.questions.empty()) return absl::InvalidArgumentError("no questions");
  KVTIER_ASSIGN_OR_RETURN(const std::string text,
                          ReadWhole("document", absl::GetFlag(FLAGS_document)));
  KVTIER_ASSIGN_OR_RETURN(const std::string folder, ModelFlag());
  document.backend = MakeCpuBackend({.threads = ThreadsFlag()});
  KVTIER_ASSIGN_OR_RETURN(document.model, Model::Load(folder, *document.backend));
  KVTIER_ASSIGN_OR_RETURN(const ByteVocabulary bytes, RequireBytes(document.model->profile()));
  document.context = bytes.Encode(text);
  progress.Start("prefill", 0);
  KVTIER_ASSIGN_OR_RETURN(document.evaluation,
                          Evaluation::Create(*document.model, document.context));
  return document;
}

absl::StatusOr<ExactCount> CountExact(const OneDocument& document, const CompressedObject& object,
                                      Ratio ratio, std::string stage, Progress& progress) {
  const std::vector<Question>& questions = document.questions.questions;
  progress.Start(absl::StrCat(stage, " at ", ratio.ToString()), questions.size());
  KVTIER_ASSIGN_OR_RETURN(const ExactCount count,
                          document.evaluation->CountExact(object, ratio, questions, ThreadsFlag(),
                                                          [&] { progress.Step(); }));
  progress.Finish();
  return count;
}

}  // namespace kvtier
