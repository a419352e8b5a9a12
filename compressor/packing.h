// Cuts a dense cache into the banded, ragged segments of an object.
#ifndef KVTIER_COMPRESSOR_PACKING_H_
#define KVTIER_COMPRESSOR_PACKING_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/dense_cache.h"
#include "compressor/packer.h"
#include "compressor/ranking.h"
#include "kvcache/compressed_object.h"

namespace kvtier {

// `identity` carries every field of the manifest that is not a consequence of the packing (key,
// upload id, model, recipe, geometry, token counts, last block hash). Protected rows and those of
// sliding layers go to band 0 with log score +inf; the others carry their log score rounded to fp16
// (finite: beyond its range it is held at the largest number). Which rows are ranked follows from
// the recipe; `ranked` has a column for each. Of a sliding layer the last `window` rows are kept,
// which is what later tokens can see (0: every row). Rows are encoded by the codec that the
// identity's recipe names.
// `on_layer` (may be empty) hears how many layers are packed (a layer's last segment may still be
// on its way to the host until the last layer is done); its error ends the packing.
// INVALID_ARGUMENT: cache, ranking or edges do not fit the identity; a row that the codec cannot
// hold (kvcache/row_codec.h), named by layer, head, band and row. RESOURCE_EXHAUSTED: no memory for
// a segment.
absl::StatusOr<CompressedObject> PackObject(
    Backend& backend, const DenseCache& cache, RankedRows& ranked, const BandEdges& edges,
    const Manifest& identity,
    const std::function<absl::Status(int64_t layers_done)>& on_layer = nullptr, int64_t window = 0);

// The same on the host, of scores that have been ranked already. INVALID_ARGUMENT also: the
// assignment does not fit scores and edges.
absl::StatusOr<CompressedObject> PackObject(
    Backend& backend, const DenseCache& cache, const ScoreTable& scores,
    const BandAssignment& assignment, const BandEdges& edges, const Manifest& identity,
    const std::function<absl::Status(int64_t layers_done)>& on_layer = nullptr, int64_t window = 0);

// Encoded bytes of the segments that PackObject makes, all bands together, before the row counts of
// scored layers are known: arrays are taken to waste half of an alignment step each, gaps between
// positions to take one byte. Exact for sliding layers: their last `window` rows (0: every row) are
// one band. REQUIRES: at least one token.
uint64_t EstimatePackedBytes(const Geometry& geometry, uint64_t system_tokens,
                             uint64_t context_tokens, const BandEdges& edges,
                             CodecId codec = CodecId::kRaw, int64_t window = 0);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_PACKING_H_
