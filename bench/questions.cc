#include "bench/questions.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

// Longer values are prose behind a colon, not something that one looks up.
constexpr size_t kKeyBytesMax = 40;
constexpr size_t kValueBytesMax = 48;

bool IsKeyByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.' || c == '/';
}

bool OccursOnce(absl::string_view document, absl::string_view text) {
  const size_t first = document.find(text);
  return first != absl::string_view::npos &&
         document.find(text, first + 1) == absl::string_view::npos;
}

// Bytes of "key = " at the start of `line`; 0 if it is no such line. A key is words of key bytes
// with single spaces between them.
size_t LookupQuestionBytes(absl::string_view line) {
  size_t key = 0;
  while (key < line.size() &&
         (IsKeyByte(line[key]) || (key > 0 && line[key] == ' ' && line[key - 1] != ' '))) {
    ++key;
  }
  while (key > 0 && line[key - 1] == ' ') --key;
  if (key == 0 || key > kKeyBytesMax) return 0;
  size_t end = key;
  while (end < line.size() && line[end] == ' ') ++end;
  if (end == line.size()) return 0;
  const bool colon = line[end] == ':' && end == key;
  if (!colon && line[end] != '=') return 0;
  ++end;
  const size_t after_separator = end;
  while (end < line.size() && line[end] == ' ') ++end;
  if (colon && end == after_separator) return 0;  // "12:30", "http:": no name and value.
  return end;
}

// Fisher and Yates; std::shuffle differs between standard libraries.
template <typename T>
void Shuffle(std::vector<T>& items, std::mt19937_64& random) {
  for (size_t left = items.size(); left > 1; --left) {
    std::swap(items[left - 1], items[random() % left]);
  }
}

void KeepFirst(std::vector<Question>& questions, size_t count) {
  if (questions.size() > count) questions.erase(questions.begin() + count, questions.end());
}

absl::StatusOr<std::vector<uint32_t>> ParseIds(const nlohmann::json& question, const char* field) {
  const auto ids = question.find(field);
  if (ids == question.end() || !ids->is_array() || ids->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is not a list of token ids"));
  }
  std::vector<uint32_t> result;
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat(field, " holds ", id.dump()));
    }
    result.push_back(id.get<uint32_t>());
  }
  return result;
}

absl::StatusOr<std::string> ParseText(const nlohmann::json& object, const char* field) {
  const auto text = object.find(field);
  if (text == object.end() || !text->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is not a text"));
  }
  return text->get<std::string>();
}

absl::StatusOr<Question> ParseQuestion(const nlohmann::json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("not an object");
  Question question;
  KVTIER_ASSIGN_OR_RETURN(const std::string kind, ParseText(json, "kind"));
  if (kind != "suffix" && kind != "lookup") {
    return absl::InvalidArgumentError(absl::StrCat("kind \"", kind, "\" is unknown"));
  }
  question.kind = kind == "suffix" ? QuestionKind::kSuffix : QuestionKind::kLookup;
  KVTIER_ASSIGN_OR_RETURN(question.question_ids, ParseIds(json, "question_ids"));
  KVTIER_ASSIGN_OR_RETURN(question.answer_ids, ParseIds(json, "answer_ids"));
  KVTIER_ASSIGN_OR_RETURN(question.question, ParseText(json, "question"));
  KVTIER_ASSIGN_OR_RETURN(question.answer, ParseText(json, "answer"));
  return question;
}

}  // namespace

absl::string_view QuestionKindName(QuestionKind kind) {
  return kind == QuestionKind::kSuffix ? "suffix" : "lookup";
}

std::vector<Question> FindSuffixQuestions(absl::string_view document) {
  absl::flat_hash_map<absl::string_view, int> counts;
  for (size_t i = 0; i + kSuffixSnippetBytes <= document.size(); ++i) {
    ++counts[document.substr(i, kSuffixSnippetBytes)];
  }
  std::vector<Question> questions;
  for (size_t i = 0; i + kSuffixSnippetBytes + kSuffixAnswerBytes <= document.size(); ++i) {
    const absl::string_view snippet = document.substr(i, kSuffixSnippetBytes);
    if (counts[snippet] != 1) continue;
    Question question;
    question.kind = QuestionKind::kSuffix;
    question.question = std::string(snippet);
    question.answer = std::string(document.substr(i + kSuffixSnippetBytes, kSuffixAnswerBytes));
    questions.push_back(std::move(question));
  }
  return questions;
}

std::vector<Question> FindLookupQuestions(absl::string_view document) {
  std::vector<Question> questions;
  for (absl::string_view line : absl::StrSplit(document, '\n')) {
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const size_t question_bytes = LookupQuestionBytes(line);
    if (question_bytes == 0) continue;
    const absl::string_view value = line.substr(question_bytes);
    if (value.empty() || value.size() > kValueBytesMax) continue;
    if (!OccursOnce(document, line.substr(0, question_bytes))) continue;
    Question question;
    question.kind = QuestionKind::kLookup;
    question.question = std::string(line.substr(0, question_bytes));
    question.answer = std::string(value);
    questions.push_back(std::move(question));
  }
  return questions;
}

absl::StatusOr<QuestionSet> DrawQuestions(absl::string_view name, absl::string_view document,
                                          const ByteVocabulary& vocabulary, uint32_t count,
                                          uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Question> suffixes = FindSuffixQuestions(document);
  std::vector<Question> lookups = FindLookupQuestions(document);
  Shuffle(suffixes, random);
  Shuffle(lookups, random);
  // Half lookups; whichever kind is short, the other one fills up.
  const size_t half = count / 2;
  const size_t suffixes_kept = std::max(count - std::min(half, lookups.size()), size_t{0});
  KeepFirst(suffixes, suffixes_kept);
  KeepFirst(lookups, count - suffixes.size());

  QuestionSet set;
  set.document = std::string(name);
  set.questions = std::move(suffixes);
  for (Question& question : lookups) set.questions.push_back(std::move(question));
  Shuffle(set.questions, random);
  if (set.questions.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no question can be drawn from ", name, ": it has ", document.size(),
                     " bytes and no snippet of ", kSuffixSnippetBytes, " bytes that occurs once"));
  }
  for (Question& question : set.questions) {
    question.question_ids = vocabulary.Encode(question.question);
    question.answer_ids = vocabulary.Encode(question.answer);
  }
  return set;
}

std::string QuestionsToJson(const QuestionSet& set) {
  nlohmann::ordered_json json;
  json["document"] = set.document;
  json["questions"] = nlohmann::ordered_json::array();
  for (const Question& question : set.questions) {
    json["questions"].push_back({{"kind", std::string(QuestionKindName(question.kind))},
                                 {"question_ids", question.question_ids},
                                 {"answer_ids", question.answer_ids},
                                 {"question", question.question},
                                 {"answer", question.answer}});
  }
  return json.dump(/*indent=*/-1, ' ', /*ensure_ascii=*/false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

absl::StatusOr<QuestionSet> QuestionsFromJson(absl::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), /*cb=*/nullptr,
                                                    /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("questions: not a JSON object");
  QuestionSet set;
  KVTIER_ASSIGN_OR_RETURN(set.document, ParseText(json, "document"));
  const auto questions = json.find("questions");
  if (questions == json.end() || !questions->is_array()) {
    return absl::InvalidArgumentError("questions: \"questions\" is not a list");
  }
  for (const nlohmann::json& item : *questions) {
    absl::StatusOr<Question> question = ParseQuestion(item);
    if (!question.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("question ", set.questions.size(), ": ", question.status().message()));
    }
    set.questions.push_back(*std::move(question));
  }
  return set;
}

}  // namespace kvtier
