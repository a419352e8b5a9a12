#include "services/store_unary_calls.h"

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"

namespace kvtier::store_calls {
namespace {

// The current upload of a name. ABORTED when another one than the name's is current.
absl::StatusOr<ObjectStat> StatNamed(TieredStore& store, const TenantId& tenant,
                                     const ObjectNameParts& name) {
  KVTIER_ASSIGN_OR_RETURN(ObjectStat stat, store.Stat(tenant, name.key));
  if (name.upload_id.has_value() && stat.manifest->upload_id != *name.upload_id) {
    return absl::AbortedError(absl::StrCat("upload ", stat.manifest->upload_id.ToHex(),
                                           " is current, not ", name.upload_id->ToHex()));
  }
  return stat;
}

}  // namespace

absl::Status QueryUpload(CallEnvironment& environment, const TenantId& tenant,
                         const v1::QueryUploadRequest& request, v1::QueryUploadResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const UploadId upload, UploadIdFromProto(request.upload_id()));
  KVTIER_ASSIGN_OR_RETURN(const uint64_t bytes, environment.store().UploadedBytes(tenant, upload));
  response.set_uploaded_bytes(bytes);
  response.set_incarnation(environment.store().incarnation());
  return absl::OkStatus();
}

absl::Status GetObject(CallEnvironment& environment, const TenantId& tenant,
                       const v1::GetObjectRequest& request, v1::GetObjectResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  KVTIER_ASSIGN_OR_RETURN(const ObjectStat stat, StatNamed(environment.store(), tenant, name));
  *response.mutable_object() = SummaryToProto(stat);
  response.set_manifest(EncodeManifest(*stat.manifest));
  return absl::OkStatus();
}

absl::Status List(CallEnvironment& environment, const TenantId& tenant,
                  const v1::ListRequest& request, v1::ListResponse& response) {
  std::optional<Key> after;
  if (!request.after_key().empty()) {
    KVTIER_ASSIGN_OR_RETURN(after, KeyFromProto(request.after_key()));
  }
  if (request.page_size() > limits::kListPageMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size ", request.page_size(), " is above ", limits::kListPageMax));
  }
  const size_t page = request.page_size() == 0 ? limits::kListPageMax : request.page_size();
  // One more than asked tells whether there is another page.
  std::vector<ObjectStat> stats = environment.store().List(tenant, after, page + 1);
  if (stats.size() > page) {
    stats.resize(page);
    response.set_next_after_key(std::string(stats.back().manifest->key.AsStringView()));
  }
  for (const ObjectStat& stat : stats) *response.add_objects() = SummaryToProto(stat);
  return absl::OkStatus();
}

absl::Status Delete(CallEnvironment& environment, const TenantId& tenant,
                    const v1::DeleteRequest& request, v1::DeleteResponse& response) {
  TieredStore& store = environment.store();
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  KVTIER_ASSIGN_OR_RETURN(ObjectStat stat, StatNamed(store, tenant, name));
  if (request.keep_ratio() == 0) return store.Delete(tenant, name.key, name.upload_id);
  KVTIER_ASSIGN_OR_RETURN(const Ratio keep, Ratio::FromDouble(request.keep_ratio()));
  if (keep == Ratio()) {
    return absl::InvalidArgumentError("keep_ratio 1 would keep everything; it must be below 1");
  }
  uint32_t bands = 1;
  while (bands < stat.manifest->bands.size() && stat.manifest->bands[bands].edge <= keep) ++bands;
  KVTIER_RETURN_IF_ERROR(store.DropBands(tenant, name.key, bands, stat.manifest->upload_id));
  KVTIER_ASSIGN_OR_RETURN(stat, store.Stat(tenant, name.key));
  *response.mutable_object() = SummaryToProto(stat);
  return absl::OkStatus();
}

absl::Status Verify(CallEnvironment& environment, const TenantId& tenant,
                    const v1::VerifyRequest& request, v1::VerifyResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  KVTIER_ASSIGN_OR_RETURN(const ObjectStat stat, StatNamed(environment.store(), tenant, name));
  KVTIER_RETURN_IF_ERROR(environment.store().Verify(tenant, name.key, stat.manifest->upload_id));
  response.set_segments(uint64_t{stat.resident_bands} * stat.manifest->geometry.layer_count());
  response.set_bytes(stat.manifest->PrefixBytes(stat.resident_bands));
  return absl::OkStatus();
}

absl::Status SetAttributes(CallEnvironment& environment, const TenantId& tenant,
                           const v1::SetAttributesRequest& request,
                           v1::SetAttributesResponse& response) {
  KVTIER_ASSIGN_OR_RETURN(const ObjectNameParts name, NameFromProto(request.name()));
  AttributeChange change;
  if (request.has_pinned()) change.pinned = request.pinned();
  if (request.has_ttl_ms()) {
    KVTIER_ASSIGN_OR_RETURN(const absl::Duration ttl, TtlFromProto(request.ttl_ms()));
    change.expires_at = environment.clock().Now() + ttl;
  }
  if (!change.pinned.has_value() && !change.expires_at.has_value()) {
    return absl::InvalidArgumentError("nothing to change: set pinned or ttl_ms");
  }
  KVTIER_ASSIGN_OR_RETURN(const ObjectStat stat, environment.store().SetAttributes(
                                                     tenant, name.key, name.upload_id, change));
  *response.mutable_object() = SummaryToProto(stat);
  return absl::OkStatus();
}

absl::Status Stats(CallEnvironment& environment, const TenantId& tenant, const v1::StatsRequest&,
                   v1::StatsResponse& response) {
  const TieredStore& store = environment.store();
  const auto set_tier = [](const TierUsage& usage, v1::TierStats* tier) {
    tier->set_bytes(usage.bytes);
    tier->set_budget_bytes(usage.budget_bytes);
  };
  response.set_objects(store.object_count());
  set_tier(store.host_usage(), response.mutable_host());
  if (const std::optional<TierUsage> disk = store.disk_usage()) {
    set_tier(*disk, response.mutable_disk());
  }
  const TenantStat own = store.StatOfTenant(tenant);
  v1::TenantStats& stats = *response.mutable_tenant();
  stats.set_objects(own.use.objects);
  stats.set_bytes(own.use.bytes());
  stats.set_quota_bytes(own.quota_bytes);
  stats.set_pinned_bytes(own.use.pinned_bytes);
  stats.set_pinned_bytes_max(own.pinned_bytes_max);
  v1::Limits& limits = *response.mutable_limits();
  limits.set_frame_bytes_max(limits::kFrameBytesMax);
  limits.set_manifest_bytes_max(limits::kManifestBytesMax);
  limits.set_object_bytes_max(environment.options().object_bytes_max);
  limits.set_uploads_max(limits::kUploadsMax);
  limits.set_list_page_max(limits::kListPageMax);
  limits.set_lookup_prompts_max(limits::kLookupBatchMax);
  limits.set_lookup_blocks_max(limits::kLookupBlocksMax);
  limits.set_lookup_candidates_max(limits::kLookupCandidatesMax);
  limits.set_lookup_bytes_max(limits::kControlMessageBytesMax);
  limits.set_small_fetch_bytes_max(limits::kSmallFetchBytesMax);
  limits.set_watchers_max(limits::kWatchersMax);
  if (const LeaseTable* leases = environment.options().leases) {
    limits.set_leases_max(leases->options().leases_max);
    const LeaseTable::Usage usage = leases->usage();
    response.mutable_leases()->set_leases(usage.leases);
    response.mutable_leases()->set_bytes(usage.bytes);
    response.mutable_leases()->set_bytes_max(usage.bytes_max);
  }
  response.set_incarnation(store.incarnation());
  response.set_version(KVTIER_VERSION);
  return absl::OkStatus();
}

}  // namespace kvtier::store_calls
