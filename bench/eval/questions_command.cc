// kvtier-eval questions: draws questions whose answers stand in a document.
#include <algorithm>
#include <filesystem>
#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/command_line.h"
#include "bench/questions.h"
#include "compressor/prompt_profile.h"

ABSL_FLAG(uint32_t, count, 200, "questions: how many to draw");

namespace kvtier {

absl::Status QuestionsCommand() {
  KVTIER_ASSIGN_OR_RETURN(const std::string document,
                          ReadWhole("document", absl::GetFlag(FLAGS_document)));
  KVTIER_ASSIGN_OR_RETURN(const std::string folder, ModelFlag());
  // The profile alone, without the weights.
  KVTIER_ASSIGN_OR_RETURN(
      const PromptProfile profile,
      PromptProfile::Load(std::filesystem::path(folder) / "kvtier_prompt_profile.json"));
  KVTIER_ASSIGN_OR_RETURN(const ByteVocabulary bytes, RequireBytes(profile));
  const std::string name = std::filesystem::path(absl::GetFlag(FLAGS_document)).filename();
  KVTIER_ASSIGN_OR_RETURN(
      const QuestionSet set,
      DrawQuestions(name, document, bytes, absl::GetFlag(FLAGS_count), absl::GetFlag(FLAGS_seed)));
  const auto lookups =
      std::count_if(set.questions.begin(), set.questions.end(),
                    [](const Question& q) { return q.kind == QuestionKind::kLookup; });
  absl::FPrintF(stderr, "%s: %d questions, %d of them lookups\n", name, set.questions.size(),
                lookups);
  return WriteOut(QuestionsToJson(set));
}

}  // namespace kvtier
