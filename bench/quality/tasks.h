// The tasks of kvtier-eval quality: documents, and questions whose answers stand in them word for
// word (docs/quality/README.md describes each with an example). They are made for a model that
// copies by content, tests/fixtures/model: a question is the text right before its answer.
// Plain functions: any thread may call. The same seed gives the same documents on every machine.
#ifndef KVTIER_BENCH_QUALITY_TASKS_H_
#define KVTIER_BENCH_QUALITY_TASKS_H_

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/text_source.h"
#include "compressor/prompt_profile.h"

namespace kvtier {

// One request and the reply that counts as right, as text.
struct Hop {
  std::string question;  // Not wrapped: PromptProfile::WrapQuery is the asker's job.
  std::string answer;
};

// What is counted: right if every hop is. Only multi-hop samples have more than one; each later
// question is built from the answer before it, so with exact answers they are known beforehand.
struct Sample {
  std::vector<Hop> hops;
  double depth = 0;  // Where the (first) answer stands, as a fraction of the document.
};

struct TaskDocument {
  std::string text;
  std::vector<Sample> samples;
};

struct Task {
  const char* name;   // In tables and files: "key_value".
  const char* title;  // In figures: "Key-value retrieval".
  bool real_text;     // Its documents hold text of a TextSource.
  bool redundant;     // Says everything several times; the others are retrieval tasks.
  uint32_t samples;   // Of one document; short ones may hold fewer (never none).
  // `bytes`: about the length of the document, at least kTaskBytesMin.
  absl::StatusOr<TaskDocument> (*make)(const TextSource& source, size_t bytes, uint32_t samples,
                                       std::mt19937_64& random);
};

inline constexpr size_t kTaskBytesMin = 600;

std::span<const Task> AllTasks();

// Document `index` of a task. INVALID_ARGUMENT: bytes below kTaskBytesMin; a source without a
// stretch that has enough snippets of its own.
absl::StatusOr<TaskDocument> MakeTaskDocument(const Task& task, const TextSource& source,
                                              size_t bytes, uint64_t seed, uint32_t index);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_TASKS_H_
