#include "services/tenant.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvtier {
namespace {
constexpr char kTenantMetadata[] = "kvtier-tenant";
}

void AddTenant(const TenantId& tenant, grpc::ClientContext& context) {
  context.AddMetadata(kTenantMetadata, std::string(tenant.name()));
}

absl::StatusOr<TenantId> TenantOf(const grpc::ServerContextBase& context) {
  const auto [begin, end] = context.client_metadata().equal_range(kTenantMetadata);
  if (begin == end) return TenantId();
  if (std::next(begin) != end) {
    return absl::InvalidArgumentError("metadata kvtier-tenant is given more than once");
  }
  return TenantId::FromString(absl::string_view(begin->second.data(), begin->second.size()));
}

}  // namespace kvtier
