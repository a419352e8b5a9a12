// Asks questions of a cache and says which are answered word for word.
#ifndef KVTIER_BENCH_QUALITY_ASKER_H_
#define KVTIER_BENCH_QUALITY_ASKER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/quality/ranked_rows.h"
#include "compressor/dense_cache.h"
#include "compressor/forward.h"
#include "compressor/model.h"

namespace kvtier {

// Token ids of a question, wrapped as the decoder gets it, and of the expected answer.
struct AskedIds {
  std::vector<uint32_t> question;
  std::vector<uint32_t> answer;
};

// Not thread-safe: one per thread. Does not own the model.
class Asker {
 public:
  // `rows_max`: question and answer together. RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<std::unique_ptr<Asker>> Create(const Model& model, const Geometry& geometry,
                                                       int64_t rows_max);

  // Whether greedy decoding after the question gives exactly the expected ids. The expected answer
  // is fed, not the model's own: it is right if and only if every argmax is the expected id,
  // because a greedy decoder feeds the expected ids until its first wrong one, and one wrong id
  // decides. `spans` is what the question sees, `first_position` its position. INVALID_ARGUMENT: an
  // empty question or answer, more than rows_max; as Forward.
  absl::StatusOr<bool> Answers(const AskedIds& asked, const LayerSpans& spans,
                               int64_t first_position);

 private:
  Asker(const Model& model, DenseCache tail, ForwardScratch scratch);

  const Model* model_;
  DenseCache tail_;
  ForwardScratch scratch_;
  std::vector<float> logits_;  // [rows of a piece, vocabulary]
};

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_ASKER_H_
