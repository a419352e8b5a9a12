// The eviction methods that kvtier-eval quality compares. To add one: a row in methods.cc.
#ifndef KVTIER_BENCH_QUALITY_METHODS_H_
#define KVTIER_BENCH_QUALITY_METHODS_H_

#include <span>

#include "absl/status/statusor.h"
#include "bench/quality/document_state.h"
#include "compressor/attention_votes.h"
#include "compressor/ranking.h"
#include "kvcache/bands.h"

namespace kvtier {

struct Method {
  const char* name;   // In tables and files: "snapkv".
  const char* title;  // In figures: "SnapKV".
  // Looks at a question, and so keeps another cache for each. Methods that do not keep the same
  // cache in both settings, and are asked once for both.
  bool fitted;
  // Not asked below this ratio, where it has long lost everything: time is short.
  double ratio_min;
  // Which pairs are kept at each edge. `question` is null for methods that are not fitted.
  absl::StatusOr<BandAssignment> (*assign)(DocumentState& document, const AttentionVotes* question,
                                           const BandEdges& edges);
};

// In the order of tables. The full cache is no method: everything is compared with it.
std::span<const Method> AllMethods();

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_METHODS_H_
