#include "store/tenant_ledger.h"

#include <algorithm>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/too_large.h"

namespace kvtier {

absl::StatusOr<TenantQuotas> ParseTenantQuotas(absl::string_view text) {
  TenantQuotas quotas;
  if (text.empty()) return quotas;
  bool has_default = false;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(part, ':');
    uint64_t bytes = 0;
    if (fields.size() != 2 || !absl::SimpleAtoi(fields[1], &bytes) || bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", part,
          "' is no tenant quota: name:bytes, with bytes above 0 (no quota: leave it out)"));
    }
    bool is_new = false;
    if (fields[0] == "*") {
      is_new = !std::exchange(has_default, true);
      quotas.default_bytes = bytes;
    } else {
      KVTIER_ASSIGN_OR_RETURN(TenantId tenant, TenantId::FromString(fields[0]));
      is_new = quotas.of.emplace(std::move(tenant), bytes).second;
    }
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat("tenant ", fields[0], " has two quotas"));
    }
  }
  if (quotas.of.size() > limits::kTenantQuotasMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        quotas.of.size(), " tenants have a quota, the limit is ", limits::kTenantQuotasMax));
  }
  return quotas;
}

void TenantLedger::Add(const TenantId& tenant, const TenantUse& use) {
  if (use == TenantUse()) return;
  TenantUse& sum = uses_[tenant];
  sum.objects += use.objects;
  sum.resident_bytes += use.resident_bytes;
  sum.upload_bytes += use.upload_bytes;
  sum.pinned_bytes += use.pinned_bytes;
  pinned_bytes_ += use.pinned_bytes;
}

void TenantLedger::Subtract(const TenantId& tenant, const TenantUse& use) {
  if (use == TenantUse()) return;
  const auto at = uses_.find(tenant);
  KVTIER_CHECK(at != uses_.end());
  TenantUse& sum = at->second;
  KVTIER_CHECK(sum.objects >= use.objects && sum.resident_bytes >= use.resident_bytes &&
               sum.upload_bytes >= use.upload_bytes && sum.pinned_bytes >= use.pinned_bytes);
  sum.objects -= use.objects;
  sum.resident_bytes -= use.resident_bytes;
  sum.upload_bytes -= use.upload_bytes;
  sum.pinned_bytes -= use.pinned_bytes;
  pinned_bytes_ -= use.pinned_bytes;
  if (sum == TenantUse()) uses_.erase(at);
}

TenantUse TenantLedger::UseOf(const TenantId& tenant) const {
  const auto found = uses_.find(tenant);
  return found == uses_.end() ? TenantUse() : found->second;
}

uint64_t TenantLedger::pinned_bytes_max(const TenantId& tenant) const {
  const uint64_t quota = quota_bytes(tenant);
  if (quota == 0) return pinned_bytes_max_;
  const uint64_t own = std::max<uint64_t>(quota / 2, 1);  // 0 would say: no limit.
  return pinned_bytes_max_ == 0 ? own : std::min(own, pinned_bytes_max_);
}

absl::StatusOr<uint64_t> TenantLedger::ExcessBytes(const TenantId& tenant, uint64_t bytes,
                                                   uint64_t replaced_bytes) const {
  const uint64_t quota = quota_bytes(tenant);
  if (quota == 0) return 0;
  if (bytes > quota) return TooLargeError(QuotaError(tenant, bytes).message());
  const uint64_t used = UseOf(tenant).bytes();
  const uint64_t rest = used - std::min(used, replaced_bytes);
  return rest <= quota - bytes ? 0 : rest - (quota - bytes);
}

absl::Status TenantLedger::QuotaError(const TenantId& tenant, uint64_t bytes) const {
  return absl::ResourceExhaustedError(absl::StrCat(
      "tenant ", tenant.name(), " uses ", UseOf(tenant).bytes(), " bytes of its quota of ",
      quota_bytes(tenant), ", ", bytes, " more are needed"));
}

absl::Status TenantLedger::CheckPin(const TenantId& tenant, uint64_t bytes) const {
  const uint64_t used = UseOf(tenant).pinned_bytes;
  const uint64_t own_max = pinned_bytes_max(tenant);
  if (own_max != 0 && (used > own_max || bytes > own_max - used)) {
    const std::string message =
        absl::StrCat("tenant ", tenant.name(), " has pinned ", used, " of at most ", own_max,
                     " bytes, ", bytes, " more are asked for");
    return bytes > own_max ? TooLargeError(message) : absl::ResourceExhaustedError(message);
  }
  if (pinned_bytes_max_ != 0 &&
      (pinned_bytes_ > pinned_bytes_max_ || bytes > pinned_bytes_max_ - pinned_bytes_)) {
    // Not how much the others have: that is not this tenant's to know.
    return absl::ResourceExhaustedError(absl::StrCat(
        "all tenants together may pin ", pinned_bytes_max_, " bytes; ", bytes, " more do not fit"));
  }
  return absl::OkStatus();
}

std::vector<std::pair<TenantId, TenantUse>> TenantLedger::Configured() const {
  std::vector<std::pair<TenantId, TenantUse>> uses;
  for (const auto& [tenant, quota] : quotas_.of) uses.emplace_back(tenant, UseOf(tenant));
  return uses;
}

}  // namespace kvtier
