// Flags that more than one subcommand reads.
#ifndef KVTIER_SERVICES_CTL_FLAGS_H_
#define KVTIER_SERVICES_CTL_FLAGS_H_

#include <memory>
#include <string>

#include "absl/flags/declare.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvcache/ids.h"
#include "services/client.h"
#include "services/ctl/commands.h"

ABSL_DECLARE_FLAG(std::string, store);
ABSL_DECLARE_FLAG(std::string, tenant);
ABSL_DECLARE_FLAG(std::string, compressor);
ABSL_DECLARE_FLAG(std::string, worker);
ABSL_DECLARE_FLAG(std::string, key);
ABSL_DECLARE_FLAG(bool, json);

namespace kvtier::ctl {

// --tenant. INVALID_ARGUMENT: no tenant can have that name.
absl::StatusOr<TenantId> OwnTenant();
// A client of --store, on behalf of --tenant. Connects with its first call.
absl::StatusOr<std::unique_ptr<StoreClient>> OpenStore();
// When a call made now must be over: --timeout.
absl::Time Deadline();
// --key, or the only positional argument. INVALID_ARGUMENT when there is none or it is no key.
absl::StatusOr<Key> RequiredKey(const Arguments& arguments);
// INVALID_ARGUMENT when there are positional arguments.
absl::Status NoArguments(const Arguments& arguments);

}  // namespace kvtier::ctl

#endif  // KVTIER_SERVICES_CTL_FLAGS_H_
