// How much of a store each tenant uses, and how much it may: bytes of resident bands (a band counts
// once, in however many tiers it is) and of open uploads, bytes of pinned objects. Pure
// bookkeeping; what follows from it is the store's business.
//
// Not thread-safe: TieredStore's mutex guards it.
#ifndef KVTIER_STORE_TENANT_LEDGER_H_
#define KVTIER_STORE_TENANT_LEDGER_H_

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/ids.h"

namespace kvtier {

// Quotas in bytes; 0: none.
struct TenantQuotas {
  std::map<TenantId, uint64_t> of;  // At most limits::kTenantQuotasMax.
  uint64_t default_bytes = 0;       // Of every other tenant.

  uint64_t Of(const TenantId& tenant) const {
    const auto found = of.find(tenant);
    return found == of.end() ? default_bytes : found->second;
  }
};

// "name:bytes,name:bytes"; the name '*' is every tenant that is not named. Empty: no quotas.
// INVALID_ARGUMENT names the part that makes no sense.
absl::StatusOr<TenantQuotas> ParseTenantQuotas(absl::string_view text);

struct TenantUse {
  uint64_t objects = 0;
  uint64_t resident_bytes = 0;  // Encoded, of sealed objects.
  uint64_t upload_bytes = 0;    // Of open uploads, whole.
  uint64_t pinned_bytes = 0;    // Of resident_bytes, those of pinned objects.

  uint64_t bytes() const { return resident_bytes + upload_bytes; }
  friend bool operator==(const TenantUse&, const TenantUse&) = default;
};

class TenantLedger {
 public:
  // `pinned_bytes_max`: of all tenants together; 0: no limit. One tenant may pin half of its quota.
  TenantLedger(TenantQuotas quotas, uint64_t pinned_bytes_max)
      : quotas_(std::move(quotas)), pinned_bytes_max_(pinned_bytes_max) {}

  void Add(const TenantId& tenant, const TenantUse& use);
  // REQUIRES: has been added.
  void Subtract(const TenantId& tenant, const TenantUse& use);

  TenantUse UseOf(const TenantId& tenant) const;
  uint64_t quota_bytes(const TenantId& tenant) const { return quotas_.Of(tenant); }  // 0: none.
  // 0: no limit. Without a quota, what all tenants may pin together.
  uint64_t pinned_bytes_max(const TenantId& tenant) const;

  // What the tenant has to give up before it may add `bytes`, when `replaced_bytes` of its use go
  // with them. RESOURCE_EXHAUSTED names the tenant, its use and its quota: `bytes` alone is more.
  absl::StatusOr<uint64_t> ExcessBytes(const TenantId& tenant, uint64_t bytes,
                                       uint64_t replaced_bytes) const;
  absl::Status QuotaError(const TenantId& tenant, uint64_t bytes) const;
  // RESOURCE_EXHAUSTED: pinning `bytes` more would exceed the tenant's limit, or that of all.
  absl::Status CheckPin(const TenantId& tenant, uint64_t bytes) const;

  // Tenants that have a quota of their own, with their use: bounded, so fit for metrics.
  std::vector<std::pair<TenantId, TenantUse>> Configured() const;
  uint64_t tenant_count() const { return uses_.size(); }  // Of those that use something.
  uint64_t pinned_bytes() const { return pinned_bytes_; }

 private:
  const TenantQuotas quotas_;
  const uint64_t pinned_bytes_max_;
  std::map<TenantId, TenantUse> uses_;  // Without those that use nothing.
  uint64_t pinned_bytes_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_TENANT_LEDGER_H_
