// Answers one question over a shared, immutable cache: attention over the object's bands and a tail
// of its own. Questions on one object share nothing but the RaggedCache.
//   ASSIGN(auto decoder, Decoder::Create(model, cache, /*tail_tokens=*/256));
//   ASSIGN(uint32_t next, decoder.Append(question_ids));        // greedy next token
//   ASSIGN(next, decoder.Append({&next, 1}));
#ifndef KVTIER_COMPRESSOR_DECODER_H_
#define KVTIER_COMPRESSOR_DECODER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/forward.h"
#include "compressor/model.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// One per question. Not thread-safe; different decoders run on different threads. The first token
// gets position logical_length, whatever was evicted. Steps of one token allocate nothing and move
// no retained row.
class Decoder {
 public:
  // FAILED_PRECONDITION: the cache is of another model, geometry or dtype (named).
  // RESOURCE_EXHAUSTED: the tail's memory cannot be had.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const Model& model, std::shared_ptr<const RaggedCache> cache, int64_t tail_tokens);

  // Appends tokens to the tail and returns logits of the last one, [vocabulary], valid until the
  // next call. RESOURCE_EXHAUSTED naming the limit when the tail is full (nothing is appended).
  // INVALID_ARGUMENT: id out of range, position past the model's limit.
  absl::StatusOr<std::span<const float>> Append(std::span<const uint32_t> ids);
  // Logits of every appended row ([ids.size(), vocabulary]); for tests and teacher forcing.
  absl::StatusOr<std::vector<float>> AppendAllLogits(std::span<const uint32_t> ids);
  // Forgets the tail: ready for the next question.
  void Reset();

  int64_t tail_length() const;
  int64_t tail_capacity() const;
  static uint64_t EstimateBytes(const Model& model, int64_t tail_tokens);

 private:
  Decoder(const Model& model, std::shared_ptr<const RaggedCache> cache);
  const Model* model_;
  std::shared_ptr<const RaggedCache> cache_;
  std::vector<HeadSpans> spans_;  // [layers]
  DenseCache tail_;
  ForwardScratch scratch_;
  std::vector<float> logits_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DECODER_H_
