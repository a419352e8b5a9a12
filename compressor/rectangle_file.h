// A rectangle as a safetensors file, for engines whose cache is a plain tensor per layer.
#ifndef KVTIER_COMPRESSOR_RECTANGLE_FILE_H_
#define KVTIER_COMPRESSOR_RECTANGLE_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "kvcache/compressed_object.h"

namespace kvtier {

// Writes all bands of `object`. Per model layer N:
//   layers.N.positions  I32 [kv_heads, rows]              ascending in each head
//   layers.N.keys       dtype [kv_heads, rows, head_dim]  after RoPE
//   layers.N.values     dtype [kv_heads, rows, head_dim]
// and as metadata key, model, model_digest, recipe, ratio, logical_length (where new tokens
// continue) and system_tokens. dtype is the object's; rows of a lossy codec are decoded, to F32.
// The file appears whole or not at all.
//   INVALID_ARGUMENT    the heads of a layer differ in their rows: no rectangle (layer named)
//   DATA_LOSS           a position code that is none
//   RESOURCE_EXHAUSTED  no memory for the tensors, all of which are held at once: as much as the
//                       file takes, which is more than the object where rows are decoded
//   UNAVAILABLE         the file system refused
absl::Status WriteRectangleFile(const CompressedObject& object, const std::string& path);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_RECTANGLE_FILE_H_
