// The shape of a KV cache: layers, KV heads, head dimension, element type.
#ifndef KVTIER_KVCACHE_GEOMETRY_H_
#define KVTIER_KVCACHE_GEOMETRY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

// Element type of keys and values. Values are stored on disk; never renumber.
enum class DType : uint8_t { kF32 = 1, kF16 = 2, kBf16 = 3 };
uint32_t DTypeBytes(DType dtype);
absl::string_view DTypeName(DType dtype);  // "f32", "f16", "bf16"
absl::StatusOr<DType> DTypeFromName(absl::string_view name);
absl::StatusOr<DType> DTypeFromByte(uint8_t byte);

// What a layer's cache holds. Values are stored on disk; never renumber.
enum class LayerKind : uint8_t {
  kGlobal = 1,   // Every position; scored, ranked, counted in the ratio.
  kSliding = 2,  // The last positions only; kept whole in band 0, neither scored nor counted.
};

// Immutable value. kv_heads counts stored heads, before any replication for GQA.
struct Geometry {
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  DType dtype = DType::kBf16;
  std::vector<LayerKind> layers;  // One entry per model layer.

  uint32_t layer_count() const { return static_cast<uint32_t>(layers.size()); }
  uint32_t scored_layer_count() const;
  // Bytes of one row's key (= of its value): head_dim elements.
  uint64_t row_bytes() const { return uint64_t{head_dim} * DTypeBytes(dtype); }
  // Bytes of one token in an uncompressed cache: keys and values of every layer and head.
  uint64_t dense_token_bytes() const { return 2 * row_bytes() * kv_heads * layer_count(); }
  // N of the ratio: scored pairs of a context of `context_tokens`.
  uint64_t scored_pairs(uint64_t context_tokens) const {
    return uint64_t{scored_layer_count()} * kv_heads * context_tokens;
  }
  // INVALID_ARGUMENT naming the field and the limit of base/limits.h that it breaks.
  absl::Status Validate() const;
  friend bool operator==(const Geometry&, const Geometry&) = default;
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_GEOMETRY_H_
