// Between the messages of kvtier.v1 and our own types, with the checks that a request needs. Plain
// functions: thread-safe.
#ifndef KVTIER_SERVICES_PROTO_CONVERT_H_
#define KVTIER_SERVICES_PROTO_CONVERT_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvcache/ids.h"
#include "kvcache/transport.h"
#include "kvtier/v1/store.pb.h"
#include "kvtier/v1/types.pb.h"
#include "store/event_log.h"
#include "store/lease_table.h"
#include "store/tiered_store.h"

namespace kvtier {

// INVALID_ARGUMENT naming the field unless it has exactly the right length.
absl::StatusOr<Key> KeyFromProto(const std::string& bytes);
absl::StatusOr<UploadId> UploadIdFromProto(const std::string& bytes);

struct ObjectNameParts {
  Key key;
  std::optional<UploadId> upload_id;
};
absl::StatusOr<ObjectNameParts> NameFromProto(const v1::ObjectName& name);

// Fills ratio, min_ratio and bytes_max of `request` with the defaults that types.proto states.
// INVALID_ARGUMENT for NaN, negative, above 1, min_ratio above ratio.
absl::Status ExtentFromProto(const v1::Extent& extent, FetchRequest& request);

absl::StatusOr<FetchRequest> FetchRequestFromProto(const TenantId& tenant,
                                                   const v1::FetchRequest& message);
// Everything but the tenant, which travels as metadata.
v1::FetchRequest FetchRequestToProto(const FetchRequest& request);

// `has_disk` decides what UNSPECIFIED means.
absl::StatusOr<Durability> DurabilityFromProto(v1::Durability durability, bool has_disk);

// What a lease holds, and its name.
void FillLeaseGranted(const Lease& lease, v1::LeaseGranted& granted);

v1::ObjectSummary SummaryToProto(const ObjectBrief& brief);
v1::ObjectSummary SummaryToProto(const ObjectStat& stat);

v1::WatchEvent EventToProto(const StoreEvent& event, uint64_t incarnation);

// A time to live on the wire; 0: it never ends. INVALID_ARGUMENT above limits::kTtlMax.
absl::StatusOr<absl::Duration> TtlFromProto(uint64_t ttl_ms);
// Infinite: 0. What is below a millisecond counts as one. INVALID_ARGUMENT: not positive.
absl::StatusOr<uint64_t> TtlToProto(absl::Duration ttl);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PROTO_CONVERT_H_
