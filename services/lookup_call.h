// StoreService.Lookup: which stored objects may be prefixes of a batch of prompts, with what
// loading and computing them would take. Looks at memory only.
#ifndef KVTIER_SERVICES_LOOKUP_CALL_H_
#define KVTIER_SERVICES_LOOKUP_CALL_H_

#include "absl/status/status.h"
#include "kvcache/ids.h"
#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"

namespace kvtier::store_calls {

absl::Status Lookup(CallEnvironment& environment, const TenantId& tenant,
                    const v1::LookupRequest& request, v1::LookupResponse& response);

}  // namespace kvtier::store_calls

#endif  // KVTIER_SERVICES_LOOKUP_CALL_H_
