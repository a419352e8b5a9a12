#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

// --- Accounts ------------------------------------------------------------------------------------

void TieredStoreImpl::Account(ObjectState& object, uint32_t bands) {
  TenantUse use;
  if (bands > 0) {
    use.objects = 1;
    use.resident_bytes = object.manifest->PrefixBytes(bands);
    if (object.attributes.pinned) use.pinned_bytes = use.resident_bytes;
  }
  ledger_.Subtract(object.tenant, object.accounted);
  ledger_.Add(object.tenant, use);
  object.accounted = use;
  object.accounted_bands = bands;
}

void TieredStoreImpl::ReserveUploadBytes(const TenantId& tenant, uint64_t bytes) {
  upload_bytes_ += bytes;
  ledger_.Add(tenant, {.upload_bytes = bytes});
}

void TieredStoreImpl::ReleaseUploadBytes(const TenantId& tenant, uint64_t bytes) {
  upload_bytes_ -= bytes;
  ledger_.Subtract(tenant, {.upload_bytes = bytes});
}

void TieredStoreImpl::TellQuotaPolicy(const ObjectPtr& object, uint32_t bands) {
  if (ledger_.quota_bytes(object->tenant) == 0) return;
  auto found = quota_policies_.find(object->tenant);
  if (found == quota_policies_.end()) {
    if (bands == 0) return;
    absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy =
        MakeEvictionPolicy(options_.eviction_policy, clock_);
    KVTIER_CHECK_OK(policy);  // Create has made two of them.
    found = quota_policies_.try_emplace(object->tenant, *std::move(policy), floor_ratio_).first;
  }
  found->second.Hold(object, bands);
  // What it has learnt goes with the tenant's last object.
  if (found->second.held_count() == 0) quota_policies_.erase(found);
}

TenantStat TieredStoreImpl::StatOfTenant(const TenantId& tenant) const {
  MutexLock lock(&mutex_);
  return {.use = ledger_.UseOf(tenant),
          .quota_bytes = ledger_.quota_bytes(tenant),
          .pinned_bytes_max = ledger_.pinned_bytes_max(tenant)};
}

std::vector<std::pair<TenantId, TenantStat>> TieredStoreImpl::StatOfConfiguredTenants() const {
  std::vector<std::pair<TenantId, TenantStat>> stats;
  MutexLock lock(&mutex_);
  for (const auto& [tenant, use] : ledger_.Configured()) {
    stats.emplace_back(
        tenant, TenantStat{use, ledger_.quota_bytes(tenant), ledger_.pinned_bytes_max(tenant)});
  }
  return stats;
}

// --- Quotas --------------------------------------------------------------------------------------

absl::StatusOr<uint64_t> TieredStoreImpl::QuotaExcess(const TenantId& tenant,
                                                      const Manifest& manifest) const {
  const ObjectPtr replaced = index_.Find(tenant, manifest.key);
  return ledger_.ExcessBytes(tenant, manifest.total_bytes(),
                             replaced == nullptr ? 0 : replaced->accounted.resident_bytes);
}

absl::StatusOr<std::optional<TieredStoreImpl::Victim>> TieredStoreImpl::NextQuotaVictim(
    const TenantId& tenant, const Manifest& manifest, const ObjectSet& passed_over) {
  MutexLock lock(&mutex_);
  KVTIER_ASSIGN_OR_RETURN(const uint64_t excess, QuotaExcess(tenant, manifest));
  if (excess == 0) return std::nullopt;
  const ObjectPtr replaced = index_.Find(tenant, manifest.key);
  if (const auto own = quota_policies_.find(tenant); own != quota_policies_.end()) {
    std::optional<Victim> victim =
        NextVictim(own->second, /*own=*/nullptr, [&](const ObjectState& object) {
          return &object != replaced.get() && MayGiveUp(object) && !passed_over.contains(&object);
        });
    if (victim.has_value()) return victim;
  }
  return ledger_.QuotaError(tenant, manifest.total_bytes());
}

absl::Status TieredStoreImpl::MakeRoomInQuota(const TenantId& tenant, const Manifest& manifest) {
  ObjectSet passed_over;
  for (;;) {
    const absl::StatusOr<std::optional<Victim>> victim =
        NextQuotaVictim(tenant, manifest, passed_over);
    if (!victim.ok()) {
      ++counters_.quota_refusals;
      return victim.status();
    }
    if (!victim->has_value()) return absl::OkStatus();
    const ObjectPtr& object = (*victim)->object;
    const absl::Status given_up = GiveUpTopBand(object);
    if (given_up.ok()) {
      ++counters_.quota_give_ups;
    } else {
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10)
          << "a band cannot be given up for its tenant's quota: " << given_up.message();
      passed_over.insert(object.get());
    }
  }
}

// --- Events --------------------------------------------------------------------------------------

void TieredStoreImpl::Announce(const ObjectChange& change) {
  ObjectState& object = change.object;
  Account(object, change.bands_after);
  if (change.bands_after == 0) {
    expiring_.Remove(object.upload());
  } else if (change.bands_before == 0) {
    expiring_.Set(object.upload(), object.attributes.expires_at);
  }
  const auto append = [&](StoreEvent::Change what) {
    event_log_.Append(object.tenant, object.manifest->key, object.upload(), std::move(what));
  };
  using Lowered = StoreEvent::Lowered;
  using Removed = StoreEvent::Removed;
  const auto lowered = [&](Lowered::Reason some, Removed::Reason all) {
    if (change.bands_after > 0) {
      append(Lowered{change.bands_after, some});
    } else {
      append(Removed{all});
    }
  };
  switch (change.cause) {
    case ChangeCause::kPut:
      append(StoreEvent::Sealed{std::make_shared<const ObjectBrief>(BriefOf(StatOf(object)))});
      break;
    case ChangeCause::kRecovered:  // Nobody watches yet.
      break;
    case ChangeCause::kReplaced:
      append(Removed{Removed::Reason::kReplaced});
      break;
    case ChangeCause::kRequested:
      lowered(Lowered::Reason::kRequested, Removed::Reason::kDeleted);
      break;
    case ChangeCause::kPressure:
      lowered(Lowered::Reason::kDegraded, Removed::Reason::kEvicted);
      break;
    case ChangeCause::kLoss:
      lowered(Lowered::Reason::kLost, Removed::Reason::kLost);
      break;
    case ChangeCause::kExpired:
      append(Removed{Removed::Reason::kExpired});
      break;
  }
}

class TieredStoreImpl::Watching final : public ObjectWatch {
 public:
  struct Seen {
    ObjectPtr object;
    uint32_t resident_bands;
  };
  Watching(TieredStoreImpl& store, std::unique_ptr<EventWatcher> events, uint64_t sequence)
      : store_(store), events_(std::move(events)), sequence_(sequence) {}

  // REQUIRES: before anybody watches.
  void BeginWith(std::vector<Seen> snapshot) {
    snapshot_ = std::move(snapshot);
    has_snapshot_ = true;
  }

  std::optional<Part> NextPart(size_t objects_max) override {
    if (!has_snapshot_) return std::nullopt;
    Part part;
    const size_t end = std::min(snapshot_.size(), next_ + objects_max);
    {
      MutexLock lock(&store_.mutex_);
      for (; next_ < end; ++next_) {
        const Seen& seen = snapshot_[next_];
        part.objects.push_back(store_.StatOf(*seen.object));
        part.objects.back().resident_bands = seen.resident_bands;
      }
    }
    part.is_last = next_ == snapshot_.size();
    if (part.is_last) {
      has_snapshot_ = false;
      snapshot_ = {};
    }
    return part;
  }
  uint64_t snapshot_sequence() const override { return sequence_; }
  EventWatcher& events() override { return *events_; }

 private:
  TieredStoreImpl& store_;
  const std::unique_ptr<EventWatcher> events_;
  const uint64_t sequence_;
  bool has_snapshot_ = false;  // With objects or without, until its last part is given.
  std::vector<Seen> snapshot_;
  size_t next_ = 0;
};

absl::StatusOr<std::unique_ptr<ObjectWatch>> TieredStoreImpl::Watch(
    const TenantId& tenant, const std::optional<uint64_t>& after) {
  MutexLock lock(&mutex_);  // Nothing is appended meanwhile.
  if (after.has_value()) {
    absl::StatusOr<std::unique_ptr<EventWatcher>> events = event_log_.Watch(tenant, *after);
    if (events.ok()) {
      return std::make_unique<Watching>(*this, *std::move(events), *after);
    }
    if (!absl::IsOutOfRange(events.status())) return events.status();
  }
  const uint64_t sequence = event_log_.last_sequence();
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<EventWatcher> events, event_log_.Watch(tenant, sequence));
  // Under the lock no more than a pointer for each object; descriptions are made part by part.
  std::vector<Watching::Seen> snapshot;
  for (ObjectPtr& object : index_.List(tenant, std::nullopt, index_.size())) {
    // Also what has expired: its end has not been told yet.
    const uint32_t bands = object->accounted_bands;
    snapshot.push_back({std::move(object), bands});
  }
  auto watching = std::make_unique<Watching>(*this, std::move(events), sequence);
  watching->BeginWith(std::move(snapshot));
  return watching;
}

}  // namespace kvtier
