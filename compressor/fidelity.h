// How well a model repeats the context from an object, measured where every token is known: greedy
// next-token hits under teacher forcing, for each band edge. The number that an operator chooses a
// ratio by, beside score mass.
//
//   repeat prompt ++ chunk  ->  after each true token, is the next true one the model's first
//   choice?
//
// Cost: a repeat pass for each (edge, chunk), so edges x chunks / all chunks times what scoring
// took, plus the logits of every row, which scoring does not need.
#ifndef KVTIER_COMPRESSOR_FIDELITY_H_
#define KVTIER_COMPRESSOR_FIDELITY_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/cancel_token.h"
#include "compressor/model.h"
#include "kvcache/compressed_object.h"
#include "kvcache/manifest.h"

namespace kvtier {

// Which of `chunks` chunks are measured when at most `chunks_max` may be: the middle ones of equal
// parts, ascending. All of them when there are no more.
std::vector<uint32_t> SampleChunks(uint32_t chunks, uint32_t chunks_max);

// Measures every band edge of `object` on at most `chunks_max` scoring chunks. `context` is what
// the object was made from. `on_tokens` (may be empty) hears how many predictions are done, of
// FidelityTokens() times the bands.
//   INVALID_ARGUMENT    no chunks asked for, or another number of context tokens than the object's
//   RESOURCE_EXHAUSTED  memory cannot be had: EstimateFidelityBytes
//   CANCELLED           soon after `cancel` fires
absl::StatusOr<Fidelity> MeasureFidelity(const Model& model, const CompressedObject& object,
                                         std::span<const uint32_t> context, uint32_t chunks_max,
                                         const std::function<void(uint64_t tokens_done)>& on_tokens,
                                         const CancelToken& cancel);

// Tokens that are predicted for each band.
uint64_t FidelityTokens(const PromptProfile& profile, uint64_t context_tokens, uint32_t chunks_max);

// What MeasureFidelity allocates beside the object: one decoder, and logits of a few rows. Where
// the backend's memory is not the host's, also a copy of the object, which is not counted here.
uint64_t EstimateFidelityBytes(const Model& model, uint64_t context_tokens, DType kv_dtype);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_FIDELITY_H_
