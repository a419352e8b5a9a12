#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

void TieredStoreImpl::Insert(const ObjectPtr& object, ChangeCause cause) {
  if (const ObjectPtr old = index_.Find(object->tenant, object->manifest->key)) {
    Lower(old, 0, ChangeCause::kReplaced);
  }
  index_.Insert(object);
  const TokenBlockHash& last_block = object->manifest->last_block_hash;
  if (!last_block.IsZero()) object->extends = hints_.Take(object->tenant, last_block);
  if (object->extends.has_value()) ++counters_.extensions_seen;
  TellPolicies(object);
  OnChange({*object, 0, ResidentBands(*object), cause});
}

void TieredStoreImpl::Lower(const ObjectPtr& object, uint32_t band_count, ChangeCause cause) {
  const uint32_t before = ResidentBands(*object);
  const bool was_found = !object->retired;
  // A replaced upload is whole for its readers: its bands go with the last of them.
  if (cause != ChangeCause::kReplaced) {
    object->band_limit = std::min(object->band_limit, band_count);
  }
  if (band_count == 0) index_.Retire(object);
  garbage_.insert(object);
  // What its tenant wanted gone says nothing about whether it is worth its room.
  const bool is_unwanted = cause == ChangeCause::kRequested || cause == ChangeCause::kExpired;
  if (band_count == 0 && is_unwanted) {
    host_policy_.Remove(object);
    disk_policy_.Remove(object);
  }
  TellPolicies(object);
  if (cause == ChangeCause::kLoss && band_count < before) {
    counters_.bands_lost += before - band_count;  // Of a retired one too: readers miss them.
  }
  if (was_found && (band_count < before || band_count == 0)) {
    OnChange({*object, before, std::min(before, band_count), cause});
  }
}

void TieredStoreImpl::OnChange(const ObjectChange& change) {
  Announce(change);
  switch (change.cause) {
    case ChangeCause::kPut:
      ++counters_.uploads_sealed;
      break;
    case ChangeCause::kPressure:
    case ChangeCause::kRequested:
      // A whole object that somebody deletes is no loss of quality.
      if (change.bands_after > 0) {
        counters_.bands_dropped += change.bands_before - change.bands_after;
      } else if (change.cause == ChangeCause::kPressure) {
        ++counters_.objects_evicted;
      }
      break;
    case ChangeCause::kExpired:
      ++counters_.objects_expired;
      break;
    case ChangeCause::kRecovered:
    case ChangeCause::kReplaced:
    case ChangeCause::kLoss:
      break;
  }
}

void TieredStoreImpl::TellPolicies(const ObjectPtr& object) {
  KVTIER_DCHECK(CheckObject(*object).ok()) << CheckObject(*object).message();
  const auto held = [&](uint32_t band_count) {
    return object->retired ? 0 : std::min(object->band_limit, band_count);
  };
  host_policy_.Hold(object, held(HostBands(*object)));
  disk_policy_.Hold(object, held(DiskBands(*object)));
  TellQuotaPolicy(object, held(std::max(HostBands(*object), DiskBands(*object))));
}

// Each tier keeps a prefix (tier.h), so the larger of the two is what is resident.
absl::Status TieredStoreImpl::CheckObject(const ObjectState& object) const {
  if (object.retired || std::max(HostBands(object), DiskBands(object)) >= object.band_limit) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat("upload ", object.upload().ToHex(), " serves ",
                                          object.band_limit, " bands, but host memory has ",
                                          HostBands(object), " and the disk ", DiskBands(object)));
}

absl::Status TieredStoreImpl::CheckInvariants() {
  MutexLock lock(&mutex_);
  size_t in_host = 0, on_disk = 0;
  std::map<TenantId, uint64_t> used;
  for (const ObjectPtr& object : index_.All()) {
    KVTIER_RETURN_IF_ERROR(CheckObject(*object));
    const uint32_t host = std::min(object->band_limit, HostBands(*object));
    const uint32_t disk = std::min(object->band_limit, DiskBands(*object));
    if (host_policy_.held_bands(*object) != host || disk_policy_.held_bands(*object) != disk) {
      return absl::InternalError(absl::StrCat(
          "upload ", object->upload().ToHex(), ": the policies were told ",
          host_policy_.held_bands(*object), " bands in host memory and ",
          disk_policy_.held_bands(*object), " on disk; there are ", host, " and ", disk));
    }
    if (object->pin_count == 0 && !garbage_.contains(object) &&
        std::max(HostBands(*object), DiskBands(*object)) > object->band_limit) {
      return absl::InternalError(
          absl::StrCat("upload ", object->upload().ToHex(), " keeps bands that nobody can read"));
    }
    if (object->accounted_bands != std::max(host, disk)) {
      return absl::InternalError(
          absl::StrCat("upload ", object->upload().ToHex(), ": its tenant's ", "account has ",
                       object->accounted_bands, " bands of ", std::max(host, disk)));
    }
    used[object->tenant] += object->accounted.resident_bytes;
    in_host += host > 0 ? 1 : 0;
    on_disk += disk > 0 ? 1 : 0;
  }
  for (const auto& [tenant, bytes] : used) {
    if (ledger_.UseOf(tenant).resident_bytes != bytes) {
      return absl::InternalError(absl::StrCat("tenant ", tenant.name(), " uses ", bytes,
                                              " bytes; its account has ",
                                              ledger_.UseOf(tenant).resident_bytes));
    }
  }
  if (host_policy_.held_count() != in_host || disk_policy_.held_count() != on_disk) {
    return absl::InternalError("the policies hold objects that are not stored");
  }
  for (const auto& [name, usage] : {std::pair("host memory", host_->Usage()),
                                    std::pair("disk", disk_usage().value_or(TierUsage()))}) {
    if (usage.budget_bytes != 0 && usage.bytes > usage.budget_bytes) {
      return absl::InternalError(absl::StrCat(name, ": ", usage.bytes,
                                              " bytes in use, the budget is ", usage.budget_bytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvtier
