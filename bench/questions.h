// Questions whose answers stand in a document, word for word: what quality is measured with.
//   suffix   16 bytes that occur once in the document; the answer is the next 16 bytes
//   lookup   "key = ", "key=" or "name: " as it stands once in the document; the answer is the
//   value,
//            up to the end of the line
// As JSON: {"document": name, "questions": [{"kind": "suffix"|"lookup", "question_ids": [...],
// "answer_ids": [...], "question": text, "answer": text}]}. The ids decide; the texts are for
// people (bytes that are no UTF-8 are replaced).
// Plain functions: any thread may call.
#ifndef KVTIER_BENCH_QUESTIONS_H_
#define KVTIER_BENCH_QUESTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/prompt_profile.h"

namespace kvtier {

inline constexpr size_t kSuffixSnippetBytes = 16;
inline constexpr size_t kSuffixAnswerBytes = 16;

enum class QuestionKind { kSuffix, kLookup };
absl::string_view QuestionKindName(QuestionKind kind);  // "suffix", "lookup"

struct Question {
  QuestionKind kind = QuestionKind::kSuffix;
  std::string question;  // Bytes as in the document.
  std::string answer;
  std::vector<uint32_t> question_ids;  // Not wrapped: PromptProfile::WrapQuery is the asker's job.
  std::vector<uint32_t> answer_ids;
};

struct QuestionSet {
  std::string document;
  std::vector<Question> questions;
};

// Draws `count` questions, half of them lookups where there are enough, in random order; fewer if
// the document has no more. The same seed gives the same questions on every machine.
// INVALID_ARGUMENT: the document has none.
absl::StatusOr<QuestionSet> DrawQuestions(absl::string_view name, absl::string_view document,
                                          const ByteVocabulary& vocabulary, uint32_t count,
                                          uint64_t seed);

// Every possible question of one kind, in document order, without ids. For tests.
std::vector<Question> FindSuffixQuestions(absl::string_view document);
std::vector<Question> FindLookupQuestions(absl::string_view document);

std::string QuestionsToJson(const QuestionSet& set);
// INVALID_ARGUMENT naming the field: malformed, unknown kind, empty question or answer.
absl::StatusOr<QuestionSet> QuestionsFromJson(absl::string_view json);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUESTIONS_H_
