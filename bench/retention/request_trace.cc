#include "bench/retention/request_trace.h"

#include <optional>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier::bench {
namespace {

absl::Status LineError(size_t line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

absl::StatusOr<uint64_t> Number(const nlohmann::json& request, const char* field, size_t line) {
  const auto found = request.find(field);
  if (found == request.end() || !found->is_number_unsigned()) {
    return LineError(line, absl::StrCat(field, " is not a number >= 0"));
  }
  return found->get<uint64_t>();
}

absl::StatusOr<TraceRequest> ParseLine(absl::string_view text, size_t line) {
  const nlohmann::json json =
      nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return LineError(line, "not a JSON object");
  KVTIER_ASSIGN_OR_RETURN(const uint64_t milliseconds, Number(json, "timestamp", line));
  KVTIER_ASSIGN_OR_RETURN(const uint64_t tokens, Number(json, "input_length", line));
  if (tokens > limits::kContextTokensMax) {
    return LineError(
        line, absl::StrCat("input_length ", tokens, " is more than ", limits::kContextTokensMax));
  }
  const auto ids = json.find("hash_ids");
  if (ids == json.end() || !ids->is_array()) return LineError(line, "hash_ids is not a list");
  TraceRequest request;
  request.at = absl::Milliseconds(milliseconds);
  request.asked_blocks = (tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (ids->size() != request.asked_blocks) {
    return LineError(line, absl::StrCat(ids->size(), " hash_ids for ", tokens, " tokens, not ",
                                        request.asked_blocks));
  }
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_unsigned()) return LineError(line, "hash_ids has what is no number >= 0");
    if (request.full_blocks.size() < tokens / kTraceBlockTokens) {
      request.full_blocks.push_back(id.get<uint64_t>());
    }
  }
  return request;
}

}  // namespace

absl::StatusOr<RequestTrace> ParseRequestTrace(absl::string_view jsonl) {
  RequestTrace trace;
  // The id before each id that was seen; nothing for the first of a prompt.
  absl::flat_hash_map<uint64_t, std::optional<uint64_t>> before;
  size_t line = 0;
  for (absl::string_view text : absl::StrSplit(jsonl, '\n')) {
    ++line;
    if (text.empty()) continue;
    KVTIER_ASSIGN_OR_RETURN(TraceRequest request, ParseLine(text, line));
    if (!trace.empty() && request.at < trace.back().at) {
      return LineError(line, "timestamp is before that of the request before");
    }
    std::optional<uint64_t> previous;
    for (const uint64_t id : request.full_blocks) {
      if (before.try_emplace(id, previous).first->second != previous) {
        return LineError(line, absl::StrCat("hash id ", id, " follows another id than before"));
      }
      previous = id;
    }
    trace.push_back(std::move(request));
  }
  if (trace.empty()) return absl::InvalidArgumentError("no request");
  return trace;
}

}  // namespace kvtier::bench
