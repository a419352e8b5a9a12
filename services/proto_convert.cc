#include "services/proto_convert.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "kvcache/bands.h"

namespace kvtier {
namespace {

template <typename Id>
absl::StatusOr<Id> IdFromProto(const std::string& bytes, absl::string_view field) {
  if (bytes.size() != Id::kSize) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", bytes.size(), " bytes, not ", Id::kSize));
  }
  return Id::FromBytes(absl::string_view(bytes));
}

absl::StatusOr<Ratio> RatioFromProto(double value, absl::string_view field) {
  absl::StatusOr<Ratio> ratio = Ratio::FromDouble(value);
  if (ratio.ok()) return ratio;
  return absl::Status(ratio.status().code(), absl::StrCat(field, ": ", ratio.status().message()));
}

}  // namespace

absl::StatusOr<Key> KeyFromProto(const std::string& bytes) {
  return IdFromProto<Key>(bytes, "key");
}

absl::StatusOr<UploadId> UploadIdFromProto(const std::string& bytes) {
  return IdFromProto<UploadId>(bytes, "upload_id");
}

absl::StatusOr<ObjectNameParts> NameFromProto(const v1::ObjectName& name) {
  ObjectNameParts parts;
  KVTIER_ASSIGN_OR_RETURN(parts.key, KeyFromProto(name.key()));
  if (!name.upload_id().empty()) {
    KVTIER_ASSIGN_OR_RETURN(parts.upload_id, UploadIdFromProto(name.upload_id()));
  }
  return parts;
}

absl::Status ExtentFromProto(const v1::Extent& extent, FetchRequest& request) {
  request.ratio = Ratio();
  if (extent.ratio() != 0) {  // Also true for NaN, which is refused below.
    KVTIER_ASSIGN_OR_RETURN(request.ratio, RatioFromProto(extent.ratio(), "ratio"));
  }
  request.bytes_max.reset();
  if (extent.bytes_max() != 0) request.bytes_max = extent.bytes_max();
  if (extent.min_ratio() != 0) {
    KVTIER_ASSIGN_OR_RETURN(request.min_ratio, RatioFromProto(extent.min_ratio(), "min_ratio"));
  } else if (request.bytes_max.has_value()) {
    KVTIER_ASSIGN_OR_RETURN(request.min_ratio, Ratio::FromMillionths(1));  // Whatever there is.
  } else {
    request.min_ratio = request.ratio;
  }
  if (!request.bytes_max.has_value() && request.min_ratio > request.ratio) {
    return absl::InvalidArgumentError(absl::StrCat("min_ratio ", request.min_ratio.ToString(),
                                                   " lies above ratio ", request.ratio.ToString()));
  }
  return absl::OkStatus();
}

absl::StatusOr<FetchRequest> FetchRequestFromProto(const TenantId& tenant,
                                                   const v1::FetchRequest& message) {
  FetchRequest request;
  request.tenant = tenant;
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(message.name()));
  request.key = name.key;
  request.upload_id = name.upload_id;
  KVTIER_RETURN_IF_ERROR(ExtentFromProto(message.extent(), request));
  if (message.has_layers()) {
    request.layers = LayerRange{message.layers().begin(), message.layers().end()};
  }
  if (message.has_heads()) {
    request.heads = HeadRange{message.heads().begin(), message.heads().end()};
  }
  return request;
}

v1::FetchRequest FetchRequestToProto(const FetchRequest& request) {
  v1::FetchRequest message;
  message.mutable_name()->set_key(std::string(request.key.AsStringView()));
  if (request.upload_id.has_value()) {
    message.mutable_name()->set_upload_id(std::string(request.upload_id->AsStringView()));
  }
  v1::Extent& extent = *message.mutable_extent();
  extent.set_ratio(request.ratio.ToDouble());
  extent.set_min_ratio(request.min_ratio.ToDouble());
  // 0 would mean "no limit"; nothing fits in it, nor in 1.
  if (request.bytes_max.has_value())
    extent.set_bytes_max(std::max<uint64_t>(*request.bytes_max, 1));
  if (request.layers.has_value()) {
    message.mutable_layers()->set_begin(request.layers->begin);
    message.mutable_layers()->set_end(request.layers->end);
  }
  if (request.heads.has_value()) {
    message.mutable_heads()->set_begin(request.heads->begin);
    message.mutable_heads()->set_end(request.heads->end);
  }
  return message;
}

absl::StatusOr<Durability> DurabilityFromProto(v1::Durability durability, bool has_disk) {
  switch (durability) {
    case v1::DURABILITY_UNSPECIFIED:
      return has_disk ? Durability::kDisk : Durability::kHost;
    case v1::DURABILITY_HOST:
      return Durability::kHost;
    case v1::DURABILITY_DISK:
      return Durability::kDisk;
    default:  // Enums of proto3 are open.
      return absl::InvalidArgumentError(
          absl::StrCat("unknown durability ", static_cast<int>(durability)));
  }
}

v1::ObjectSummary SummaryToProto(const ObjectStat& stat) {
  const Manifest& manifest = *stat.manifest;
  v1::ObjectSummary summary;
  summary.mutable_name()->set_key(std::string(manifest.key.AsStringView()));
  summary.mutable_name()->set_upload_id(std::string(manifest.upload_id.AsStringView()));
  summary.set_model(manifest.model_name);
  summary.set_recipe(manifest.recipe);
  summary.set_system_tokens(manifest.system_tokens);
  summary.set_context_tokens(manifest.context_tokens);
  summary.set_dense_bytes(manifest.dense_bytes());
  for (const BandEntry& band : manifest.bands) {
    v1::BandSummary& out = *summary.add_bands();
    out.set_edge_millionths(band.edge.millionths());
    out.set_bytes(band.encoded_bytes());
    out.set_threshold(band.threshold);
    out.set_score_mass(band.score_mass);
  }
  summary.set_resident_bands(stat.resident_bands);
  summary.set_host_bands(stat.host_bands);
  summary.set_disk_bands(stat.disk_bands);
  summary.set_durability(stat.durability == Durability::kDisk ? v1::DURABILITY_DISK
                                                              : v1::DURABILITY_HOST);
  summary.set_sealed_unix_ms(absl::ToUnixMillis(stat.sealed_at));
  return summary;
}

}  // namespace kvtier
