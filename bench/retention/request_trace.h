// A trace of requests to an LLM service, in the JSONL format published with Mooncake (FAST'25
// release of kvcache-ai/Mooncake): one JSON object a line with `timestamp` (ms since the start, not
// falling), `input_length` (tokens of the prompt) and `hash_ids` (one id per block of 512 prompt
// tokens, the last one usually partial). Ids are chained: an id names its block and everything
// before it, so prompts that share a prefix share the leading ids. Other fields are ignored.
#ifndef KVTIER_BENCH_RETENTION_REQUEST_TRACE_H_
#define KVTIER_BENCH_RETENTION_REQUEST_TRACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace kvtier::bench {

inline constexpr uint64_t kTraceBlockTokens = 512;

struct TraceRequest {
  absl::Duration at;                  // Since the start of the trace.
  uint64_t asked_blocks = 0;          // With the partial one at the end.
  std::vector<uint64_t> full_blocks;  // Ids of the full ones.
};

// Requests in order of time.
using RequestTrace = std::vector<TraceRequest>;

// INVALID_ARGUMENT names the line and what is wrong with it: not JSON, a field missing or of
// another type, more than limits::kContextTokensMax tokens, another number of ids than the length
// has blocks, a time that falls, ids that are not chained; or that there is no request.
absl::StatusOr<RequestTrace> ParseRequestTrace(absl::string_view jsonl);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_RETENTION_REQUEST_TRACE_H_
