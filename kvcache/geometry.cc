#include "kvcache/geometry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

absl::Status CheckCount(absl::string_view field, uint64_t value, absl::string_view limit_name,
                        uint64_t limit) {
  if (value == 0) return absl::InvalidArgumentError(absl::StrCat("geometry: ", field, " is 0"));
  if (value > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry: ", field, " is ", value, ", at most ", limit_name, " = ", limit));
  }
  return absl::OkStatus();
}

}  // namespace

uint32_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBf16:
      return 2;
  }
  KVTIER_CHECK(false);
  return 0;
}

absl::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBf16:
      return "bf16";
  }
  KVTIER_CHECK(false);
  return "";
}

absl::StatusOr<DType> DTypeFromName(absl::string_view name) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    if (name == DTypeName(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("dtype: \"", name, "\" is not f32, f16 or bf16"));
}

absl::StatusOr<DType> DTypeFromByte(uint8_t byte) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    if (byte == static_cast<uint8_t>(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("dtype: unknown value ", byte));
}

uint32_t Geometry::scored_layer_count() const {
  return static_cast<uint32_t>(std::count(layers.begin(), layers.end(), LayerKind::kGlobal));
}

absl::Status Geometry::Validate() const {
  KVTIER_RETURN_IF_ERROR(CheckCount("kv_heads", kv_heads, "kKvHeadsMax", limits::kKvHeadsMax));
  KVTIER_RETURN_IF_ERROR(CheckCount("head_dim", head_dim, "kHeadDimMax", limits::kHeadDimMax));
  KVTIER_RETURN_IF_ERROR(CheckCount("layers", layers.size(), "kLayersMax", limits::kLayersMax));
  KVTIER_RETURN_IF_ERROR(DTypeFromByte(static_cast<uint8_t>(dtype)));
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer] != LayerKind::kGlobal && layers[layer] != LayerKind::kSliding) {
      return absl::InvalidArgumentError(absl::StrCat(
          "geometry: layer ", layer, " has unknown kind ", static_cast<int>(layers[layer])));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvtier
