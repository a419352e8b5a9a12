// What several commands of kvtier-eval read from the command line, and where they write.
// Plain functions of the flags; call them after parsing, from one thread.
#ifndef KVTIER_BENCH_EVAL_COMMAND_LINE_H_
#define KVTIER_BENCH_EVAL_COMMAND_LINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/prompt_profile.h"
#include "kvcache/bands.h"

ABSL_DECLARE_FLAG(std::string, model);
ABSL_DECLARE_FLAG(std::string, document);
ABSL_DECLARE_FLAG(std::string, questions);
ABSL_DECLARE_FLAG(std::string, out);
ABSL_DECLARE_FLAG(uint64_t, seed);
ABSL_DECLARE_FLAG(std::vector<std::string>, ratios);
ABSL_DECLARE_FLAG(uint32_t, threads);

namespace kvtier {

// The bytes of a file. INVALID_ARGUMENT naming the flag: no path, or it cannot be read.
absl::StatusOr<std::string> ReadWhole(absl::string_view flag, const std::string& path);

// --model. INVALID_ARGUMENT: missing.
absl::StatusOr<std::string> ModelFlag();

// Writes `content` and a line feed to a file. UNAVAILABLE: it cannot be written.
absl::Status WriteFile(const std::string& path, absl::string_view content);
// The same to --out, or to standard output if that is empty.
absl::Status WriteOut(absl::string_view content);

// --threads, at least 1; one per core if it is 0.
int ThreadsFlag();

// --ratios in the order given, `otherwise` if there are none. INVALID_ARGUMENT naming the word that
// is no ratio.
absl::StatusOr<std::vector<Ratio>> RatiosFlag(const std::vector<std::string>& otherwise);

// INVALID_ARGUMENT: the profile declares no byte vocabulary, so that a text has no tokens here.
absl::StatusOr<ByteVocabulary> RequireBytes(const PromptProfile& profile);

}  // namespace kvtier

#endif  // KVTIER_BENCH_EVAL_COMMAND_LINE_H_
