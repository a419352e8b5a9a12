// Cuts a dense cache into the banded, ragged segments of an object.
#ifndef KVTIER_COMPRESSOR_PACKING_H_
#define KVTIER_COMPRESSOR_PACKING_H_

#include "absl/status/statusor.h"
#include "compressor/dense_cache.h"
#include "compressor/ranking.h"
#include "kvcache/compressed_object.h"

namespace kvtier {

// `identity` carries every field of the manifest that is not a consequence of the packing (key,
// upload id, model, recipe, geometry, token counts, last block hash). Rows of the system prompt and
// of sliding layers go to band 0 with log score +inf.
absl::StatusOr<CompressedObject> PackObject(Backend& backend, const DenseCache& cache,
                                            const ScoreTable& scores,
                                            const BandAssignment& assignment,
                                            const BandEdges& edges, const Manifest& identity);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_PACKING_H_
