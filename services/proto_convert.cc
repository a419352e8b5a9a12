#include "services/proto_convert.h"

#include <algorithm>
#include <cstdint>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/limits.h"
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

v1::ResidencyChange::Reason ReasonToProto(StoreEvent::Lowered::Reason reason) {
  switch (reason) {
    case StoreEvent::Lowered::Reason::kDegraded:
      return v1::ResidencyChange::REASON_DEGRADED;
    case StoreEvent::Lowered::Reason::kRequested:
      return v1::ResidencyChange::REASON_REQUESTED;
    case StoreEvent::Lowered::Reason::kLost:
      return v1::ResidencyChange::REASON_LOST;
  }
  return v1::ResidencyChange::REASON_UNSPECIFIED;
}

v1::Removal::Reason ReasonToProto(StoreEvent::Removed::Reason reason) {
  switch (reason) {
    case StoreEvent::Removed::Reason::kDeleted:
      return v1::Removal::REASON_DELETED;
    case StoreEvent::Removed::Reason::kReplaced:
      return v1::Removal::REASON_REPLACED;
    case StoreEvent::Removed::Reason::kEvicted:
      return v1::Removal::REASON_EVICTED;
    case StoreEvent::Removed::Reason::kExpired:
      return v1::Removal::REASON_EXPIRED;
    case StoreEvent::Removed::Reason::kLost:
      return v1::Removal::REASON_LOST;
  }
  return v1::Removal::REASON_UNSPECIFIED;
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

void FillLeaseGranted(const Lease& lease, v1::LeaseGranted& granted) {
  const Manifest& manifest = *lease.object().manifest();
  const uint32_t band_count = lease.object().band_count();
  granted.mutable_lease()->set_id(lease.id().id);
  granted.mutable_lease()->set_epoch(lease.id().epoch);
  granted.mutable_name()->set_key(std::string(manifest.key.AsStringView()));
  granted.mutable_name()->set_upload_id(std::string(manifest.upload_id.AsStringView()));
  granted.set_band_count(band_count);
  granted.set_ratio_millionths(manifest.bands[band_count - 1].edge.millionths());
}

v1::ObjectSummary SummaryToProto(const ObjectStat& stat) { return SummaryToProto(BriefOf(stat)); }

v1::ObjectSummary SummaryToProto(const ObjectBrief& brief) {
  v1::ObjectSummary summary;
  summary.mutable_name()->set_key(std::string(brief.key.AsStringView()));
  summary.mutable_name()->set_upload_id(std::string(brief.upload_id.AsStringView()));
  summary.set_model(brief.model_name);
  summary.set_recipe(brief.recipe);
  summary.set_system_tokens(brief.system_tokens);
  summary.set_context_tokens(brief.context_tokens);
  summary.set_dense_bytes(brief.dense_bytes);
  for (const ObjectBrief::Band& band : brief.bands) {
    v1::BandSummary& out = *summary.add_bands();
    out.set_edge_millionths(band.edge.millionths());
    out.set_bytes(band.bytes);
    out.set_threshold(band.threshold);
    out.set_score_mass(band.score_mass);
  }
  summary.set_resident_bands(brief.resident_bands);
  summary.set_host_bands(brief.host_bands);
  summary.set_disk_bands(brief.disk_bands);
  summary.set_durability(brief.durability == Durability::kDisk ? v1::DURABILITY_DISK
                                                               : v1::DURABILITY_HOST);
  summary.set_sealed_unix_ms(absl::ToUnixMillis(brief.sealed_at));
  summary.set_pinned(brief.attributes.pinned);
  if (brief.attributes.expires_at != absl::InfiniteFuture()) {
    summary.set_expires_unix_ms(absl::ToUnixMillis(brief.attributes.expires_at));
  }
  return summary;
}

v1::WatchEvent EventToProto(const StoreEvent& event, uint64_t incarnation) {
  v1::WatchEvent out;
  out.set_sequence(event.sequence);
  out.set_incarnation(incarnation);
  out.set_unix_ms(absl::ToUnixMillis(event.at));
  out.mutable_name()->set_key(std::string(event.key.AsStringView()));
  out.mutable_name()->set_upload_id(std::string(event.upload.AsStringView()));
  if (const auto* sealed = std::get_if<StoreEvent::Sealed>(&event.change)) {
    *out.mutable_sealed() = SummaryToProto(*sealed->object);
  } else if (const auto* lowered = std::get_if<StoreEvent::Lowered>(&event.change)) {
    out.mutable_residency()->set_resident_bands(lowered->resident_bands);
    out.mutable_residency()->set_reason(ReasonToProto(lowered->reason));
  } else if (const auto* removed = std::get_if<StoreEvent::Removed>(&event.change)) {
    out.mutable_removed()->set_reason(ReasonToProto(removed->reason));
  }
  return out;
}

absl::StatusOr<absl::Duration> TtlFromProto(uint64_t ttl_ms) {
  if (ttl_ms == 0) return absl::InfiniteDuration();
  if (ttl_ms > static_cast<uint64_t>(absl::ToInt64Milliseconds(limits::kTtlMax))) {
    return absl::InvalidArgumentError(
        absl::StrCat("ttl_ms ", ttl_ms, " is above ", absl::ToInt64Milliseconds(limits::kTtlMax)));
  }
  return absl::Milliseconds(static_cast<int64_t>(ttl_ms));
}

absl::StatusOr<uint64_t> TtlToProto(absl::Duration ttl) {
  if (ttl == absl::InfiniteDuration()) return 0;
  if (ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a time to live of ", absl::FormatDuration(ttl)));
  }
  return static_cast<uint64_t>(std::max<int64_t>(absl::ToInt64Milliseconds(ttl), 1));
}

}  // namespace kvtier
