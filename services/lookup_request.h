// What a LookupRequest must be before anything is looked up. Plain functions: thread-safe.
#ifndef KVTIER_SERVICES_LOOKUP_REQUEST_H_
#define KVTIER_SERVICES_LOOKUP_REQUEST_H_

#include "absl/status/status.h"
#include "kvtier/v1/store.pb.h"

namespace kvtier {

// INVALID_ARGUMENT: names the field that is wrong, or the limit.
absl::Status CheckLookupRequest(const v1::LookupRequest& request);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LOOKUP_REQUEST_H_
