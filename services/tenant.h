// On whose behalf a call is made. Until identities come from certificates (mTLS), a client says its
// tenant in the metadata `kvtier-tenant`, and a server believes it; without it the tenant is
// "default". Deploy on trusted networks only until then.
#ifndef KVTIER_SERVICES_TENANT_H_
#define KVTIER_SERVICES_TENANT_H_

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include "absl/status/statusor.h"
#include "kvcache/ids.h"

namespace kvtier {

// Client side.
void AddTenant(const TenantId& tenant, grpc::ClientContext& context);
// Server side. INVALID_ARGUMENT for a name that no tenant can have, or more than one name.
absl::StatusOr<TenantId> TenantOf(const grpc::ServerContextBase& context);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_TENANT_H_
