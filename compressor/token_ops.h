// The operations of a pass that depend on which tokens it is about and where they stand: what
// forward.cc asks for beside the plain arithmetic of Backend. Told by the host for any number of
// tokens (forward.cc), or read by the backend from its own memory for one (decode_step.h).
#ifndef KVTIER_COMPRESSOR_TOKEN_OPS_H_
#define KVTIER_COMPRESSOR_TOKEN_OPS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "compressor/backend.h"

namespace kvtier {

// Views have a row for each token. Errors as Backend's operation of the same name. Not thread-safe.
class TokenOps {
 public:
  virtual ~TokenOps() = default;
  // The tokens' rows of `table`, times `scale`.
  virtual absl::Status Embed(const TensorView& table, float scale, TensorView y) = 0;
  virtual absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) = 0;
  // At the tokens' positions.
  virtual absl::Status Rope(TensorView x, int64_t heads, const RopeTable& table) = 0;
  // To the tokens' rows of the layer's tail.
  virtual absl::Status AppendKv(int64_t layer, TensorView k, TensorView v) = 0;
  // Over what every token sees in the layer, and the tail up to the token itself.
  virtual absl::Status Attention(int64_t layer, TensorView q, TensorView out) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_TOKEN_OPS_H_
