// What ModelConfig::Parse reads, part by part; each part builds on those before it. Private to
// model_config.h. Errors as ModelConfig::Parse. Plain functions: any thread may call.
#ifndef KVTIER_COMPRESSOR_CONFIG_PARTS_H_
#define KVTIER_COMPRESSOR_CONFIG_PARTS_H_

#include "absl/status/status.h"
#include "compressor/config_fields.h"
#include "compressor/model_config.h"

namespace kvtier {

// Widths, heads, layers, vocabulary, epsilon, tied embeddings. REQUIRES: the family.
absl::Status ReadSizes(ConfigFields& fields, ModelConfig& config);

// Which layers slide, and how far they see. REQUIRES: the family and its sizes.
absl::Status ReadLayerKinds(ConfigFields& fields, ModelConfig& config);

// RoPE of global and of sliding layers, whose frequencies are then finite. REQUIRES: the same.
absl::Status ReadRope(ConfigFields& fields, ModelConfig& config);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CONFIG_PARTS_H_
