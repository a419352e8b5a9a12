#include "compressor/fidelity.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/decoder.h"
#include "kvcache/ragged_view.h"

namespace kvtier {
namespace {

// Rows whose logits are held at once: 64 x 256k x 4 bytes is 64 MiB.
constexpr size_t kPieceRows = 64;

// Bands 0..band of an object, as a worker would hold them.
absl::StatusOr<std::shared_ptr<const RaggedCache>> UpTo(const CompressedObject& object,
                                                        uint32_t band) {
  const Geometry& geometry = object.manifest->geometry;
  const int64_t segments = int64_t{band + 1} * geometry.layer_count();
  return RaggedCache::Create(object.manifest, band + 1, {0, geometry.kv_heads},
                             {object.segments.begin(), object.segments.begin() + segments});
}

// How many of the last `expected` ids are the first choice after those before them. Of equal
// logits the lowest id wins, as in greedy decoding.
absl::StatusOr<uint64_t> CountHits(Decoder& decoder, std::span<const uint32_t> ids, size_t expected,
                                   const CancelToken& cancel) {
  const size_t first = ids.size() - expected;
  uint64_t hits = 0;
  // The last id predicts nothing that is known.
  for (size_t begin = 0; begin + 1 < ids.size();) {
    KVTIER_RETURN_IF_ERROR(cancel.Check());
    const size_t rows = std::min(kPieceRows, ids.size() - 1 - begin);
    KVTIER_ASSIGN_OR_RETURN(const std::vector<float> logits,
                            decoder.AppendAllLogits(ids.subspan(begin, rows)));
    const auto vocabulary = static_cast<int64_t>(logits.size() / rows);
    for (size_t row = 0; row < rows; ++row) {
      const size_t next = begin + row + 1;
      if (next < first) continue;
      const auto of_row = logits.begin() + static_cast<int64_t>(row) * vocabulary;
      const auto best = std::max_element(of_row, of_row + vocabulary) - of_row;
      hits += static_cast<uint32_t>(best) == ids[next] ? 1 : 0;
    }
    begin += rows;
  }
  return hits;
}

}  // namespace

std::vector<uint32_t> SampleChunks(uint32_t chunks, uint32_t chunks_max) {
  const uint64_t count = std::min(chunks, chunks_max);
  std::vector<uint32_t> sample;
  for (uint64_t i = 0; i < count; ++i) {
    sample.push_back(static_cast<uint32_t>((2 * i + 1) * chunks / (2 * count)));
  }
  return sample;
}

uint64_t FidelityTokens(const PromptProfile& profile, uint64_t context_tokens,
                        uint32_t chunks_max) {
  uint64_t tokens = 0;
  for (const uint32_t c : SampleChunks(profile.ChunkCount(context_tokens), chunks_max)) {
    const PromptProfile::Chunk chunk = profile.ChunkAt(context_tokens, c);
    tokens += chunk.end - chunk.begin;
  }
  return tokens;
}

uint64_t EstimateFidelityBytes(const Model& model, uint64_t context_tokens, DType kv_dtype) {
  const auto tail = static_cast<int64_t>(model.profile().RepeatRowsMax(context_tokens));
  return Decoder::EstimateBytes(model, tail, kv_dtype) +
         2 * kPieceRows * static_cast<uint64_t>(model.config().vocabulary) * sizeof(float);
}

absl::StatusOr<Fidelity> MeasureFidelity(const Model& model, const CompressedObject& object,
                                         std::span<const uint32_t> context, uint32_t chunks_max,
                                         const std::function<void(uint64_t tokens_done)>& on_tokens,
                                         const CancelToken& cancel) {
  const Manifest& m = *object.manifest;
  if (context.size() != m.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("fidelity: a context of ", context.size(),
                                                   " tokens, the object has ", m.context_tokens));
  }
  const PromptProfile& profile = model.profile();
  const std::vector<uint32_t> chunks = SampleChunks(profile.ChunkCount(context.size()), chunks_max);
  if (chunks.empty()) return absl::InvalidArgumentError("fidelity: no chunk to measure");

  Fidelity fidelity;
  fidelity.chunks = static_cast<uint32_t>(chunks.size());
  fidelity.tokens = FidelityTokens(profile, context.size(), chunks_max);
  uint64_t done = 0;
  for (uint32_t band = 0; band < m.bands.size(); ++band) {
    KVTIER_ASSIGN_OR_RETURN(auto cache, UpTo(object, band));
    KVTIER_ASSIGN_OR_RETURN(
        const std::unique_ptr<Decoder> decoder,
        Decoder::Create(model, std::move(cache),
                        static_cast<int64_t>(profile.RepeatRowsMax(context.size()))));
    uint64_t correct = 0;
    for (const uint32_t c : chunks) {
      decoder->Reset();
      const PromptProfile::Chunk chunk = profile.ChunkAt(context.size(), c);
      const size_t expected = chunk.end - chunk.begin;
      KVTIER_ASSIGN_OR_RETURN(
          const uint64_t hits,
          CountHits(*decoder, profile.RepeatInput(context, c), expected, cancel));
      correct += hits;
      done += expected;
      if (on_tokens) on_tokens(done);
    }
    fidelity.correct.emplace_back(correct);
  }
  return fidelity;
}

}  // namespace kvtier
