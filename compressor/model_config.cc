#include "compressor/model_config.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace kvtier {

float ModelConfig::embedding_scale() const {
  return family == ModelFamily::kGemma3 ? std::sqrt(static_cast<float>(hidden)) : 1.0f;
}

float ModelConfig::softmax_scale() const {
  return static_cast<float>(1.0 / std::sqrt(softmax_dimension));
}

RopeTable ModelConfig::MakeRopeTable(LayerKind kind) const {
  return (kind == LayerKind::kSliding ? sliding_rope : rope).MakeTable(head_dim);
}

std::string ModelConfig::RopeFingerprint() const {
  std::string text = rope.Fingerprint(head_dim);
  if (window > 0) absl::StrAppend(&text, "; sliding ", sliding_rope.Fingerprint(head_dim));
  return text;
}

Geometry ModelConfig::MakeGeometry(DType kv_dtype) const {
  Geometry geometry;
  geometry.kv_heads = static_cast<uint32_t>(kv_heads);
  geometry.head_dim = static_cast<uint32_t>(head_dim);
  geometry.dtype = kv_dtype;
  geometry.layers = layer_kinds;
  return geometry;
}

}  // namespace kvtier
