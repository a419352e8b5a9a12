#include "services/ctl/flags.h"

#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"

ABSL_FLAG(std::string, store, "127.0.0.1:7071", "host:port of the store");
ABSL_FLAG(std::string, tenant, "default", "the tenant whose objects are meant");
ABSL_FLAG(std::string, compressor, "127.0.0.1:7072", "host:port of the compressor");
ABSL_FLAG(std::string, worker, "127.0.0.1:7073", "host:port of the worker");
ABSL_FLAG(std::string, key, "", "key of an object, 64 hexadecimal digits");
ABSL_FLAG(bool, json, false, "print JSON");
ABSL_FLAG(absl::Duration, timeout, absl::Minutes(30), "give up a call after this long");

namespace kvtier::ctl {

absl::StatusOr<TenantId> OwnTenant() {
  const std::string name = absl::GetFlag(FLAGS_tenant);
  absl::StatusOr<TenantId> tenant = TenantId::FromString(name);
  if (tenant.ok()) return tenant;
  return absl::InvalidArgumentError(
      absl::StrCat("--tenant is '", name, "': ", tenant.status().message()));
}

absl::StatusOr<std::unique_ptr<StoreClient>> OpenStore() {
  KVTIER_ASSIGN_OR_RETURN(TenantId tenant, OwnTenant());
  return std::make_unique<StoreClient>(MakeChannel(absl::GetFlag(FLAGS_store)), std::move(tenant));
}

absl::Time Deadline() { return Clock::Real().Now() + absl::GetFlag(FLAGS_timeout); }

absl::StatusOr<Key> RequiredKey(const Arguments& arguments) {
  std::string hex = absl::GetFlag(FLAGS_key);
  if (hex.empty() && arguments.size() == 1) hex = arguments[0];
  if (hex.empty()) return absl::InvalidArgumentError("name an object: --key HEX");
  return Key::FromHex(hex);
}

absl::Status NoArguments(const Arguments& arguments) {
  if (arguments.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", arguments[0], "'"));
}

}  // namespace kvtier::ctl
