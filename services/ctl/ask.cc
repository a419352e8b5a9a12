// kvtierctl ask: one question, or a file of them in parallel, over one stored object.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <optional>
#include <thread>  // NOLINT(build/c++11)

#include <nlohmann/json.hpp>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/input.h"
#include "services/ctl/output.h"

ABSL_DECLARE_FLAG(std::string, token_ids);
ABSL_DECLARE_FLAG(double, min_ratio);
ABSL_FLAG(double, ratio, 1.0, "ratio of KV pairs wanted, in (0, 1]");
ABSL_FLAG(std::string, question, "", "the question as text (byte vocabularies only)");
ABSL_FLAG(std::string, questions, "", "JSON file of questions with expected answers");
ABSL_FLAG(std::string, out, "", "write the result here: a JSON file (ask), a folder (fetch)");
ABSL_FLAG(uint32_t, answer_tokens, 64, "longest answer to --question or --token_ids");
ABSL_FLAG(std::string, stop, "", "a byte that ends the answer, e.g. $'\\n'");
ABSL_FLAG(std::string, stop_token_ids, "",
          "token ids that end the answer, separated by commas, e.g. 128001,128009");
ABSL_FLAG(double, temperature, 0, "0 is greedy");
ABSL_FLAG(uint64_t, seed, 0, "for a temperature above 0");
ABSL_FLAG(bool, raw, false, "send ids as they are, without the model's query prefix");
ABSL_FLAG(uint32_t, parallel, 2, "questions that run at once, with --questions");

namespace kvtier::ctl {
namespace {

struct Question {
  std::vector<uint32_t> ids;
  std::vector<uint32_t> expected;
};

absl::StatusOr<std::vector<uint32_t>> IdsOf(const nlohmann::json& question, const char* field) {
  std::vector<uint32_t> ids;
  if (question.is_object() && question.contains(field) && question[field].is_array()) {
    for (const nlohmann::json& id : question[field]) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) break;
      ids.push_back(id.get<uint32_t>());
    }
    if (!ids.empty() && ids.size() == question[field].size()) return ids;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--questions: '", field, "' must be a non-empty array of token ids"));
}

absl::StatusOr<std::vector<Question>> ReadQuestions(const std::string& path) {
  KVTIER_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 64 * limits::kMiB));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("questions") || !json["questions"].is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " must be a JSON object with an array 'questions'"));
  }
  std::vector<Question> questions;
  for (const nlohmann::json& item : json["questions"]) {
    Question question;
    KVTIER_ASSIGN_OR_RETURN(question.ids, IdsOf(item, "question_ids"));
    KVTIER_ASSIGN_OR_RETURN(question.expected, IdsOf(item, "answer_ids"));
    questions.push_back(std::move(question));
  }
  return questions;
}

// --stop and --stop_token_ids.
absl::StatusOr<std::vector<uint32_t>> ReadStopIds(const std::optional<ByteVocabulary>& vocabulary,
                                                  uint64_t vocabulary_size) {
  const std::string stop = absl::GetFlag(FLAGS_stop);
  const size_t listed_max = limits::kStopIdsMax - (stop.empty() ? 0 : 1);
  KVTIER_ASSIGN_OR_RETURN(std::vector<uint32_t> ids,
                          ParseIdList(absl::GetFlag(FLAGS_stop_token_ids), "--stop_token_ids",
                                      vocabulary_size, listed_max));
  if (stop.empty()) return ids;
  if (!vocabulary.has_value() || stop.size() != 1) {
    return absl::InvalidArgumentError("--stop takes one byte, for models of bytes");
  }
  ids.push_back(vocabulary->Encode(stop)[0]);
  return ids;
}

v1::AskRequest MakeAsk(uint64_t attachment, std::span<const uint32_t> ids, uint32_t answer_tokens,
                       std::span<const uint32_t> stop_ids) {
  v1::AskRequest request;
  request.set_attachment(attachment);
  request.mutable_token_ids()->Add(ids.begin(), ids.end());
  request.set_raw(absl::GetFlag(FLAGS_raw));
  request.set_answer_tokens_max(answer_tokens);
  request.mutable_stop_ids()->Add(stop_ids.begin(), stop_ids.end());
  request.set_temperature(absl::GetFlag(FLAGS_temperature));
  request.set_seed(absl::GetFlag(FLAGS_seed));
  return request;
}

// Answers in the order of the questions.
absl::StatusOr<std::vector<std::vector<uint32_t>>> AskAll(WorkerClient& worker, uint64_t attachment,
                                                          std::span<const Question> questions,
                                                          std::span<const uint32_t> stop_ids) {
  std::vector<std::vector<uint32_t>> answers(questions.size());
  std::atomic<size_t> next{0};
  Mutex mutex;
  absl::Status failure;  // The first one; guarded by mutex.
  size_t done = 0;
  ProgressBar bar;
  const auto work = [&] {
    for (size_t i = next++; i < questions.size(); i = next++) {
      const absl::StatusOr<WorkerClient::Answer> answer =
          worker.Ask(MakeAsk(attachment, questions[i].ids,
                             static_cast<uint32_t>(questions[i].expected.size()), stop_ids),
                     nullptr, Deadline());
      MutexLock lock(&mutex);
      if (!answer.ok()) {
        failure.Update(answer.status());
        next = questions.size();
        return;
      }
      answers[i] = answer->token_ids;
      bar.Update("asking", ++done, questions.size());
    }
  };
  std::vector<std::thread> threads;
  const uint32_t count =
      std::clamp(absl::GetFlag(FLAGS_parallel), 1u, limits::kConcurrentAsksPerObjectMax);
  for (uint32_t i = 0; i < count; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  KVTIER_RETURN_IF_ERROR(failure);
  return answers;
}

absl::Status PrintOrWrite(const nlohmann::json& json) {
  const std::string out = absl::GetFlag(FLAGS_out);
  if (!out.empty()) return WriteFile(out, absl::StrCat(Dump(json), "\n"));
  std::puts(Dump(json).c_str());
  return absl::OkStatus();
}

absl::Status AskFile(WorkerClient& worker, const v1::AttachResponse& attached,
                     const std::vector<Question>& questions, std::span<const uint32_t> stop_ids) {
  KVTIER_ASSIGN_OR_RETURN(const std::vector<std::vector<uint32_t>> answers,
                          AskAll(worker, attached.attachment(), questions, stop_ids));
  nlohmann::json list = nlohmann::json::array();
  size_t exact = 0;
  for (size_t i = 0; i < questions.size(); ++i) {
    const bool equal = answers[i] == questions[i].expected;
    exact += equal ? 1 : 0;
    list.push_back({{"answer_ids", answers[i]}, {"exact", equal}});
  }
  if (!absl::GetFlag(FLAGS_json)) {
    absl::PrintF("ratio %s: %d of %d answers exact, %s fetched in %.1f ms\n",
                 FormatRatio(attached.ratio_millionths()), exact, questions.size(),
                 FormatBytes(attached.bytes()), 1e3 * attached.fetch_seconds());
    if (absl::GetFlag(FLAGS_out).empty()) return absl::OkStatus();
  }
  // Read after the questions: what the worker computed over its whole life.
  KVTIER_ASSIGN_OR_RETURN(const v1::GetWorkerResponse state, worker.GetWorker(Deadline()));
  return PrintOrWrite({{"ratio", attached.ratio_millionths() / 1e6},
                       {"bytes", attached.bytes()},
                       {"fetch_ms", 1e3 * attached.fetch_seconds()},
                       {"prefilled_context_tokens", state.prefilled_context_tokens()},
                       {"tokens", attached.object().context_tokens()},
                       {"dense_bytes", attached.object().dense_bytes()},
                       {"exact", exact},
                       {"total", questions.size()},
                       {"answers", std::move(list)}});
}

absl::Status AskOne(WorkerClient& worker, const v1::AttachResponse& attached,
                    std::span<const uint32_t> ids, std::span<const uint32_t> stop_ids,
                    const std::optional<ByteVocabulary>& vocabulary) {
  const v1::AskRequest request =
      MakeAsk(attached.attachment(), ids, absl::GetFlag(FLAGS_answer_tokens), stop_ids);
  const bool stream = !absl::GetFlag(FLAGS_json) && absl::GetFlag(FLAGS_out).empty();
  KVTIER_ASSIGN_OR_RETURN(const WorkerClient::Answer answer,
                          worker.Ask(
                              request,
                              [&](std::span<const uint32_t> tokens) {
                                if (!stream) return;
                                for (const uint32_t token : tokens) {
                                  const std::string text = vocabulary.has_value()
                                                               ? vocabulary->Decode({&token, 1})
                                                               : absl::StrCat(token, " ");
                                  std::fputs(text.c_str(), stdout);
                                }
                                std::fflush(stdout);
                              },
                              Deadline()));
  if (stream) {
    std::fputc('\n', stdout);
    return absl::OkStatus();
  }
  nlohmann::json json = {{"ratio", attached.ratio_millionths() / 1e6},
                         {"bytes", attached.bytes()},
                         {"fetch_ms", 1e3 * attached.fetch_seconds()},
                         {"answer_ids", answer.token_ids},
                         {"question_tokens", answer.finish.question_tokens()},
                         {"question_seconds", answer.finish.question_seconds()},
                         {"decode_seconds", answer.finish.decode_seconds()},
                         {"stopped", answer.finish.reason() == v1::FINISH_REASON_STOP_ID}};
  if (vocabulary.has_value()) json["answer"] = vocabulary->Decode(answer.token_ids);
  return PrintOrWrite(json);
}

}  // namespace

absl::Status Ask(const Arguments& arguments) {
  KVTIER_ASSIGN_OR_RETURN(const Key key, RequiredKey(arguments));
  const std::string text = absl::GetFlag(FLAGS_question);
  const std::string ids_file = absl::GetFlag(FLAGS_token_ids);
  const std::string questions_file = absl::GetFlag(FLAGS_questions);
  if (int{!text.empty()} + int{!ids_file.empty()} + int{!questions_file.empty()} != 1) {
    return absl::InvalidArgumentError("ask with one of --question, --token_ids, --questions");
  }
  KVTIER_RETURN_IF_ERROR(Ratio::FromDouble(absl::GetFlag(FLAGS_ratio)).status());
  WorkerClient worker(MakeChannel(absl::GetFlag(FLAGS_worker)));
  KVTIER_ASSIGN_OR_RETURN(const v1::GetWorkerResponse state, worker.GetWorker(Deadline()));
  std::optional<ByteVocabulary> vocabulary;
  if (state.has_byte_vocabulary_first_id()) {
    vocabulary = ByteVocabulary{.first_id = state.byte_vocabulary_first_id()};
  }
  // Everything that can be wrong with the input is found before anything is fetched.
  KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> stop_ids,
                          ReadStopIds(vocabulary, state.vocabulary()));
  std::vector<uint32_t> ids;
  std::vector<Question> questions;
  if (!questions_file.empty()) {
    KVTIER_ASSIGN_OR_RETURN(questions, ReadQuestions(questions_file));
  } else if (!ids_file.empty()) {
    KVTIER_ASSIGN_OR_RETURN(ids, ReadTokenIds(ids_file));
  } else {
    KVTIER_ASSIGN_OR_RETURN(ids, EncodeText(text, vocabulary, state.model(), "--token_ids"));
  }

  v1::AttachRequest request;
  request.mutable_name()->set_key(std::string(key.AsStringView()));
  request.mutable_extent()->set_ratio(absl::GetFlag(FLAGS_ratio));
  request.mutable_extent()->set_min_ratio(absl::GetFlag(FLAGS_min_ratio));
  KVTIER_ASSIGN_OR_RETURN(const v1::AttachResponse attached, worker.Attach(request, Deadline()));
  const auto detach = absl::MakeCleanup([&] {
    if (const absl::Status status = worker.Detach(attached.attachment(), Deadline());
        !status.ok()) {
      std::fprintf(stderr, "kvtierctl: detach: %s\n", status.ToString().c_str());
    }
  });
  return questions.empty() ? AskOne(worker, attached, ids, stop_ids, vocabulary)
                           : AskFile(worker, attached, questions, stop_ids);
}

}  // namespace kvtier::ctl
