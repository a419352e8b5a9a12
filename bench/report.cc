#include "bench/report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using nlohmann::json;

absl::StatusOr<json> ParseObject(absl::string_view text) {
  json parsed = json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return absl::InvalidArgumentError("not a JSON object");
  return parsed;
}

absl::StatusOr<double> ReadNumber(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_number()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", field, "\" is not a number"));
  }
  return it->get<double>();
}

absl::StatusOr<uint64_t> ReadCount(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_number_unsigned()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", field, "\" is not a count"));
  }
  return it->get<uint64_t>();
}

absl::StatusOr<BaselineRow> ReadRow(const json& object) {
  if (!object.is_object()) return absl::InvalidArgumentError("\"rows\" holds no object");
  BaselineRow row;
  KVTIER_ASSIGN_OR_RETURN(row.ratio, ReadNumber(object, "ratio"));
  KVTIER_ASSIGN_OR_RETURN(row.snapkv, ReadCount(object, "snapkv"));
  const auto seeds = object.find("random_by_seed");
  if (seeds == object.end() || !seeds->is_array() || seeds->empty()) {
    return absl::InvalidArgumentError("\"random_by_seed\" is not a list");
  }
  for (const json& count : *seeds) {
    if (!count.is_number_unsigned()) {
      return absl::InvalidArgumentError("\"random_by_seed\" holds no count");
    }
    row.random_by_seed.push_back(count.get<uint32_t>());
  }
  return row;
}

// Ratios are written and read as decimals of at most six digits.
bool SameRatio(double a, double b) { return std::abs(a - b) < 5e-7; }

double RoundTo(double value, double per_unit) { return std::round(value * per_unit) / per_unit; }

const BaselineRow* FindRow(const Baselines& baselines, double ratio) {
  for (const BaselineRow& row : baselines.rows) {
    if (SameRatio(row.ratio, ratio)) return &row;
  }
  return nullptr;
}

absl::Status CheckAnswers(const Answers& answers, const Answers& first, uint32_t questions,
                          const Baselines& baselines) {
  const std::string where = absl::StrCat("answers at ratio ", answers.ratio, ": ");
  if (answers.total != questions) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, answers.total, " questions, expected ", questions));
  }
  if (answers.tokens != first.tokens || answers.dense_bytes != first.dense_bytes ||
      answers.tokens != baselines.tokens) {
    return absl::InvalidArgumentError(absl::StrCat(where, answers.tokens, " tokens and ",
                                                   answers.dense_bytes,
                                                   " dense bytes: of another document"));
  }
  if (!SameRatio(answers.ratio, 1) && FindRow(baselines, answers.ratio) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(where, "the baselines have no such ratio"));
  }
  if (answers.prefilled_context_tokens != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        where, "the worker prefilled ", answers.prefilled_context_tokens, " context tokens"));
  }
  return absl::OkStatus();
}

}  // namespace

double BaselineRow::random_mean() const {
  const double sum = std::accumulate(random_by_seed.begin(), random_by_seed.end(), 0.0);
  return sum / static_cast<double>(random_by_seed.size());
}

std::string BaselinesToJson(const Baselines& baselines) {
  nlohmann::ordered_json out;
  out["document"] = baselines.document;
  out["tokens"] = baselines.tokens;
  out["questions"] = baselines.questions;
  out["full"] = baselines.full;
  out["rows"] = nlohmann::ordered_json::array();
  for (const BaselineRow& row : baselines.rows) {
    out["rows"].push_back({{"ratio", row.ratio},
                           {"random", RoundTo(row.random_mean(), 10)},
                           {"random_by_seed", row.random_by_seed},
                           {"snapkv", row.snapkv}});
  }
  return out.dump();
}

absl::StatusOr<Baselines> BaselinesFromJson(absl::string_view text) {
  KVTIER_ASSIGN_OR_RETURN(const json object, ParseObject(text));
  Baselines baselines;
  const auto document = object.find("document");
  if (document == object.end() || !document->is_string()) {
    return absl::InvalidArgumentError("\"document\" is not a text");
  }
  baselines.document = document->get<std::string>();
  KVTIER_ASSIGN_OR_RETURN(baselines.tokens, ReadCount(object, "tokens"));
  KVTIER_ASSIGN_OR_RETURN(baselines.questions, ReadCount(object, "questions"));
  KVTIER_ASSIGN_OR_RETURN(baselines.full, ReadCount(object, "full"));
  const auto rows = object.find("rows");
  if (rows == object.end() || !rows->is_array()) {
    return absl::InvalidArgumentError("\"rows\" is not a list");
  }
  for (const json& item : *rows) {
    KVTIER_ASSIGN_OR_RETURN(BaselineRow row, ReadRow(item));
    baselines.rows.push_back(std::move(row));
  }
  return baselines;
}

absl::StatusOr<Answers> AnswersFromJson(absl::string_view text) {
  KVTIER_ASSIGN_OR_RETURN(const json object, ParseObject(text));
  Answers answers;
  KVTIER_ASSIGN_OR_RETURN(answers.ratio, ReadNumber(object, "ratio"));
  KVTIER_ASSIGN_OR_RETURN(answers.fetch_ms, ReadNumber(object, "fetch_ms"));
  KVTIER_ASSIGN_OR_RETURN(answers.bytes, ReadCount(object, "bytes"));
  KVTIER_ASSIGN_OR_RETURN(answers.prefilled_context_tokens,
                          ReadCount(object, "prefilled_context_tokens"));
  KVTIER_ASSIGN_OR_RETURN(answers.tokens, ReadCount(object, "tokens"));
  KVTIER_ASSIGN_OR_RETURN(answers.dense_bytes, ReadCount(object, "dense_bytes"));
  KVTIER_ASSIGN_OR_RETURN(answers.exact, ReadCount(object, "exact"));
  KVTIER_ASSIGN_OR_RETURN(answers.total, ReadCount(object, "total"));
  return answers;
}

absl::StatusOr<std::string> MakeReport(uint32_t questions, std::vector<Answers> answers,
                                       const Baselines& baselines) {
  if (answers.empty()) return absl::InvalidArgumentError("no answers");
  if (baselines.questions != questions) {
    return absl::InvalidArgumentError(absl::StrCat("the baselines answered ", baselines.questions,
                                                   " questions, expected ", questions));
  }
  for (const Answers& a : answers) {
    KVTIER_RETURN_IF_ERROR(CheckAnswers(a, answers[0], questions, baselines));
  }
  std::sort(answers.begin(), answers.end(),
            [](const Answers& a, const Answers& b) { return a.ratio > b.ratio; });

  const Answers& any = answers[0];
  std::string text = absl::StrFormat("%s: %d tokens, %d bytes of KV cache, %d questions\n\n",
                                     baselines.document, any.tokens, any.dense_bytes, questions);
  absl::StrAppendFormat(&text, "%-8s%14s%12s%10s%9s%9s%8s\n", "ratio", "bytes", "fetch ms", "KVzip",
                        "random", "SnapKV", "full");
  nlohmann::ordered_json summary;
  summary["document"] = baselines.document;
  summary["tokens"] = any.tokens;
  summary["dense_bytes"] = any.dense_bytes;
  summary["questions"] = questions;
  summary["full"] = baselines.full;
  summary["prefilled_context_tokens"] = 0;
  summary["rows"] = nlohmann::ordered_json::array();
  for (const Answers& a : answers) {
    const BaselineRow* row = FindRow(baselines, a.ratio);
    const double random = row != nullptr ? row->random_mean() : a.exact;
    const uint32_t snapkv = row != nullptr ? row->snapkv : a.exact;
    absl::StrAppendFormat(&text, "%-8g%14d%12.1f%10d%9.1f%9d%8d\n", a.ratio, a.bytes, a.fetch_ms,
                          a.exact, random, snapkv, baselines.full);
    summary["rows"].push_back({{"ratio", a.ratio},
                               {"bytes", a.bytes},
                               {"fetch_ms", RoundTo(a.fetch_ms, 1000)},
                               {"kvzip", a.exact},
                               {"random", RoundTo(random, 10)},
                               {"snapkv", snapkv}});
  }
  absl::StrAppend(&text, "\nExact answers of ", questions,
                  " questions, greedy. random: mean of its seeds. SnapKV: fitted to the first "
                  "question, then reused.\nfull: dense cache of the whole context, by another code "
                  "path. At ratio 1 every method keeps everything.\n");
  absl::StrAppend(&text, "demo: ok ", summary.dump(), "\n");
  return text;
}

}  // namespace kvtier
