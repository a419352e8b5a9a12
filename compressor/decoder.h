// Answers one question over a shared, immutable cache: attention over the object's bands and a tail
// of its own. Questions on one object share nothing but the ResidentCache.
//   KVTIER_ASSIGN_OR_RETURN(auto decoder, Decoder::Create(model, object, /*tail_tokens=*/256));
//   KVTIER_ASSIGN_OR_RETURN(auto logits, decoder->Append(profile.WrapQuery(question_ids)));
//   uint32_t next = sampler.Next(logits);
//   KVTIER_ASSIGN_OR_RETURN(logits, decoder->Append({&next, 1}));
#ifndef KVTIER_COMPRESSOR_DECODER_H_
#define KVTIER_COMPRESSOR_DECODER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/decode_step.h"
#include "compressor/forward.h"
#include "compressor/model.h"
#include "compressor/resident_cache.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// How steps of one token run. Each falls back to the next where the backend does not offer it.
enum class StepMode {
  kReplayed,  // As the backend launched an earlier one (decode_step.h).
  kLaunched,  // Operation by operation, over what was prepared for the object.
  kPlain,     // As a pass of any number of tokens.
};

// One per question. Not thread-safe; different decoders run on different threads. The first token
// gets position logical_length, whatever was evicted. No retained row is moved: attention reads the
// object's segments where they lie. On a CPU steps of one token allocate no backend memory; on a
// device the first and second of every 256 tokens of the tail may (decode_step.h), all others
// allocate none and bring over nothing but the token and where it stands.
class Decoder {
 public:
  // FAILED_PRECONDITION: the cache is of another model, geometry or dtype, holds only some heads
  // (named), or lies where the model's backend cannot read it. RESOURCE_EXHAUSTED: the tail's
  // memory cannot be had. INVALID_ARGUMENT: tail_tokens < 1.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const Model& model,
                                                         std::shared_ptr<const ResidentCache> cache,
                                                         int64_t tail_tokens,
                                                         StepMode steps = StepMode::kReplayed);
  // The same over a cache in host memory, made resident for this decoder alone; errors also those
  // of ResidentCache::Create.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const Model& model,
                                                         std::shared_ptr<const RaggedCache> cache,
                                                         int64_t tail_tokens);

  // Appends tokens to the tail and returns logits of the last one, [vocabulary], valid until the
  // next call. On any error nothing is appended.
  // RESOURCE_EXHAUSTED naming the limit when the tail is full. INVALID_ARGUMENT: no ids, an id out
  // of range, a position past the model's limit.
  absl::StatusOr<std::span<const float>> Append(std::span<const uint32_t> ids);
  // Logits of every appended row ([ids.size(), vocabulary]); for tests and teacher forcing.
  absl::StatusOr<std::vector<float>> AppendAllLogits(std::span<const uint32_t> ids);
  // Forgets the tail: ready for the next question.
  void Reset() { tail_.SetLength(0); }

  int64_t tail_length() const { return tail_.length(); }
  int64_t tail_capacity() const { return tail_.capacity(); }
  // How steps of one token have run; zeros where the backend offers none.
  StepCounts step_counts() const { return step_ == nullptr ? StepCounts() : step_->counts(); }

  // Bytes that Create allocates on the backend, beside a resident cache and what steps of one token
  // take on a device. `kv_dtype` is that of the cache.
  static uint64_t EstimateBytes(const Model& model, int64_t tail_tokens,
                                DType kv_dtype = DType::kBf16);

 private:
  Decoder(const Model& model, std::shared_ptr<const ResidentCache> cache, DenseCache tail,
          ForwardScratch scratch);
  // Makes step_, where the backend offers it.
  absl::Status MakeStep(bool replay);
  absl::Status CheckFits(std::span<const uint32_t> ids) const;
  // Appends in pieces that fit the scratch; writes logits_, and all rows' if `all` is not null.
  absl::Status Run(std::span<const uint32_t> ids, std::vector<float>* all);
  // The same for one token by step_. REQUIRES: it fits.
  absl::Status RunStep(uint32_t id);

  const Model* model_;
  std::shared_ptr<const ResidentCache> cache_;
  DenseCache tail_;
  ForwardScratch scratch_;
  std::vector<float> logits_;      // [vocabulary]
  std::vector<float> all_logits_;  // Of one piece.
  // Null: steps are passes. The last member: it uses the memory of the others.
  std::unique_ptr<DecodeStep> step_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DECODER_H_
