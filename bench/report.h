// The demo's table: what KVzip, random eviction and SnapKV answer at the same ratios, beside the
// full cache. Put together from files, because the KVzip rows come from a worker in another
// process.
#ifndef KVTIER_BENCH_REPORT_H_
#define KVTIER_BENCH_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

// One method's answers at one ratio.
struct BaselineRow {
  double ratio = 0;
  std::vector<uint32_t> random_by_seed;  // Exact answers of each seed; at least one.
  uint32_t snapkv = 0;
  double random_mean() const;
};

// What `kvtier-eval baselines` writes.
struct Baselines {
  std::string document;
  uint64_t tokens = 0;
  uint32_t questions = 0;
  uint32_t full = 0;
  std::vector<BaselineRow> rows;
};
std::string BaselinesToJson(const Baselines& baselines);
// INVALID_ARGUMENT naming the field.
absl::StatusOr<Baselines> BaselinesFromJson(absl::string_view json);

// What `kvtierctl ask --questions Q.json --json` writes, as far as it is used here.
struct Answers {
  double ratio = 0;
  uint64_t bytes = 0;
  double fetch_ms = 0;
  uint64_t prefilled_context_tokens = 0;
  uint64_t tokens = 0;
  uint64_t dense_bytes = 0;
  uint32_t exact = 0;
  uint32_t total = 0;
};
absl::StatusOr<Answers> AnswersFromJson(absl::string_view json);

// The aligned table, ending in the line "demo: ok {...}". Ratios descend. At ratio 1 every method
// keeps everything, so a row that the baselines lack there shows the KVzip row's count.
// INVALID_ARGUMENT: no answers, another number of questions, other documents, a ratio below 1 that
// the baselines lack. FAILED_PRECONDITION: the worker prefilled context tokens.
absl::StatusOr<std::string> MakeReport(uint32_t questions, std::vector<Answers> answers,
                                       const Baselines& baselines);

}  // namespace kvtier

#endif  // KVTIER_BENCH_REPORT_H_
