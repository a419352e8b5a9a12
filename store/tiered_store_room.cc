#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "base/too_large.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

std::optional<TieredStoreImpl::Victim> TieredStoreImpl::NextVictim(
    ObjectPolicy& policy, const ObjectPtr& own,
    absl::FunctionRef<bool(const ObjectState&)> may_go) {
  std::optional<Turns::Turn> turn;
  const ObjectPtr object = policy.Next([&](const ObjectPtr& candidate) {
    if (!may_go(*candidate)) return false;
    if (candidate == own) return true;
    std::optional<Turns::Turn> free =
        turns_.TryTake(TurnName(candidate->tenant, candidate->manifest->key));
    if (!free.has_value()) return false;
    turn.emplace(*std::move(free));
    return true;
  });
  if (object == nullptr) return std::nullopt;
  return Victim{object, std::move(turn)};
}

// --- Host memory ---------------------------------------------------------------------------------

bool TieredStoreImpl::MayLeaveHost(const ObjectState& object, RoomCost most) const {
  if (host_->IsTopBandHeld(object.upload())) return false;  // It would free nothing now.
  if (disk_ == nullptr) return most == RoomCost::kQuality && MayGiveUp(object);
  const uint32_t in_host = HostBands(object), on_disk = DiskBands(object);
  // A reader pinned bands that have been given up since, and only host memory has them.
  if (object.pin_count > 0 && in_host > std::max(object.band_limit, on_disk)) return false;
  return in_host <= on_disk || most != RoomCost::kNothing;
}

std::optional<TieredStoreImpl::Victim> TieredStoreImpl::NextHostVictim(const ObjectPtr& own,
                                                                       RoomCost most,
                                                                       const ObjectSet& passed_over,
                                                                       bool may_be_read) {
  MutexLock lock(&mutex_);
  const auto may_go = [&](const ObjectState& object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return (may_be_read || object.pin_count == 0) && !passed_over.contains(&object) &&
           MayLeaveHost(object, most);
  };
  return NextVictim(host_policy_, own, may_go);
}

absl::Status TieredStoreImpl::MakeRoom(uint64_t bytes, const ObjectPtr& own, RoomCost most) {
  ObjectSet passed_over;
  bool disk_refuses = false;
  for (;;) {
    const TierUsage usage = host_->Usage();
    if (HasRoom(usage, bytes)) return absl::OkStatus();
    if (bytes > usage.budget_bytes) {
      return TooLargeError(absl::StrCat(bytes,
                                        " bytes of host memory are needed at once; the budget "
                                        "(host_budget_bytes) is ",
                                        usage.budget_bytes));
    }
    // If the disk takes nothing now, what it has already may still go.
    const RoomCost cost = disk_refuses && most == RoomCost::kDiskWrites ? RoomCost::kNothing : most;
    std::optional<Victim> unread = NextHostVictim(own, cost, passed_over, /*may_be_read=*/false);
    const bool is_free =
        unread.has_value() && HostBands(*unread->object) <= DiskBands(*unread->object);
    if (!is_free && most != RoomCost::kNothing && DropAFill()) continue;
    // Readers fall back to the disk, and what they hold at that moment stays in use: better than to
    // refuse.
    const std::optional<Victim> victim =
        unread.has_value() || most == RoomCost::kNothing
            ? std::move(unread)
            : NextHostVictim(own, cost, passed_over, /*may_be_read=*/true);
    if (!victim.has_value()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "host memory budget (host_budget_bytes) of ", usage.budget_bytes, " bytes: ", usage.bytes,
          " in use and not evictable now, ", bytes, " more needed"));
    }
    const absl::Status left =
        disk_ == nullptr ? GiveUpTopBand(victim->object) : DemoteTopBand(victim->object, most);
    if (!left.ok()) {
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "a band cannot leave host memory: " << left.message();
      disk_refuses = disk_refuses || !absl::IsAborted(left);  // ABORTED: that object is going.
    }
    // It refuses, or a reader holds its bytes.
    if (!left.ok() || host_->Usage().bytes >= usage.bytes) {
      passed_over.insert(victim->object.get());
    }
  }
}

absl::Status TieredStoreImpl::DemoteTopBand(const ObjectPtr& victim, RoomCost most) {
  const uint32_t host_bands = HostBands(*victim);
  if (host_bands > 0) {
    absl::Status on_disk = EnsureOnDisk(victim);
    if (absl::IsResourceExhausted(on_disk) && most == RoomCost::kQuality) {
      bool is_worth_it = false;
      {
        MutexLock lock(&mutex_);
        is_worth_it = disk_policy_.Admit(*victim) >= ResidentBands(*victim);
      }
      if (is_worth_it) {
        on_disk = StoreMakingRoom(BytesNotOnDisk(victim), [&] { return EnsureOnDisk(victim); });
      }
      // Quality goes before whole objects do (docs/adr/0010-degrade.md).
      if (absl::IsResourceExhausted(on_disk)) return GiveUpTopBand(victim);
    }
    KVTIER_RETURN_IF_ERROR(on_disk);
    KVTIER_SYNC_POINT("store.demote.before_host_drop");
    KVTIER_RETURN_IF_ERROR(host_->DropBands(victim->upload(), host_bands - 1));
    ++counters_.bands_demoted;
    KVTIER_SYNC_POINT("store.demote.after_host_drop");
  }
  MutexLock lock(&mutex_);
  TellPolicies(victim);
  return absl::OkStatus();
}

absl::Status TieredStoreImpl::EnsureOnDisk(const ObjectPtr& object) {
  const Manifest& manifest = *object->manifest;
  uint32_t resident = 0;
  {
    MutexLock lock(&mutex_);
    if (object->retired) return absl::AbortedError("the object is being given up");
    resident = ResidentBands(*object);
  }
  const uint32_t on_disk = disk_->SealedBands(object->upload());
  if (on_disk >= resident) return absl::OkStatus();
  // Left by an attempt that failed before it was sealed, and could not clean up.
  KVTIER_RETURN_IF_ERROR(disk_->DropBands(object->upload(), on_disk));
  SettleDiskDebt(object->upload());
  KVTIER_SYNC_POINT("store.demote.before_disk");
  absl::Status stored;
  for (uint32_t band = on_disk; stored.ok() && band < resident; ++band) {
    std::vector<SegmentRef> layers;
    for (uint32_t layer = 0; stored.ok() && layer < manifest.geometry.layer_count(); ++layer) {
      absl::StatusOr<SegmentRef> segment = host_->Get(manifest, BandIndex(band), LayerIndex(layer));
      if (segment.ok()) {
        layers.push_back(*std::move(segment));
      } else {
        stored = absl::AbortedError("the object is being given up");
      }
    }
    if (stored.ok()) stored = disk_->PutBand(manifest, BandIndex(band), layers);
  }
  if (stored.ok()) stored = RecordAttributes(object);
  if (stored.ok()) {
    stored = disk_->SealPrefix(object->tenant, manifest, resident, object->sealed_at);
  }
  if (!stored.ok()) {
    const absl::Status removed = disk_->DropBands(object->upload(), on_disk);
    if (!removed.ok()) {
      OweDisk({object->tenant, manifest.key}, object->upload(), on_disk, removed);
    }
  } else {
    KVTIER_SYNC_POINT("store.demote.after_disk");
  }
  MutexLock lock(&mutex_);
  TellPolicies(object);
  return stored;
}

uint64_t TieredStoreImpl::BytesNotOnDisk(const ObjectPtr& object) {
  uint64_t bytes = 0;
  MutexLock lock(&mutex_);
  for (uint32_t band = disk_->SealedBands(object->upload()); band < ResidentBands(*object);
       ++band) {
    bytes += disk_->ChargeOf(object->manifest->bands[band]);
  }
  return bytes;
}

// --- The disk ------------------------------------------------------------------------------------

absl::Status TieredStoreImpl::StoreMakingRoom(uint64_t bytes,
                                              absl::FunctionRef<absl::Status()> store) {
  constexpr int kAttempts = 4;  // Others may take the room that we make.
  bool disk_is_full = false;
  for (int attempt = 1;; ++attempt) {
    KVTIER_RETURN_IF_ERROR(MakeDiskRoom(bytes, disk_is_full));
    const bool has_budget = HasRoom(disk_->Usage(), bytes);
    const absl::Status stored = store();
    if (!absl::IsResourceExhausted(stored) || attempt == kAttempts) return stored;
    disk_is_full = has_budget && HasRoom(disk_->Usage(), bytes);
    KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "the disk refuses bands: " << stored.message();
  }
}

std::optional<TieredStoreImpl::Victim> TieredStoreImpl::NextDiskVictim(
    const ObjectSet& passed_over) {
  MutexLock lock(&mutex_);
  return NextVictim(disk_policy_, /*own=*/nullptr, [&](const ObjectState& object) {
    return MayGiveUp(object) && !passed_over.contains(&object);
  });
}

absl::Status TieredStoreImpl::MakeDiskRoom(uint64_t bytes, bool disk_is_full) {
  ObjectSet passed_over;
  uint64_t given_up_bytes = 0;
  // What nobody has comes first.
  if (disk_is_full || !HasRoom(disk_->Usage(), bytes)) PayDiskDebts();
  for (;;) {
    const TierUsage usage = disk_->Usage();
    if (HasRoom(usage, bytes) && (!disk_is_full || given_up_bytes >= bytes)) {
      return absl::OkStatus();
    }
    if (usage.budget_bytes != 0 && bytes > usage.budget_bytes) {
      return TooLargeError(absl::StrCat(
          bytes, " bytes of disk are needed at once; the disk budget is ", usage.budget_bytes));
    }
    const std::optional<Victim> victim = NextDiskVictim(passed_over);
    // What has gone may do: only the disk itself knows.
    if (!victim.has_value() && HasRoom(usage, bytes) && given_up_bytes > 0) {
      return absl::OkStatus();
    }
    if (!victim.has_value()) {
      return absl::ResourceExhaustedError(
          disk_is_full
              ? absl::StrCat("the disk is full, and no band may be given up now; ", bytes,
                             " bytes needed")
              : absl::StrCat("disk budget of ", usage.budget_bytes, " bytes: ", usage.bytes,
                             " in use and not to be given up now, ", bytes, " more needed"));
    }
    const ObjectState& object = *victim->object;
    const uint32_t before = DiskBands(object);
    const absl::Status given_up = GiveUpTopBand(victim->object);
    const uint32_t after = DiskBands(object);
    for (uint32_t band = after; band < before; ++band) {
      given_up_bytes += disk_->ChargeOf(object.manifest->bands[band]);
    }
    if (!given_up.ok()) {
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "a band cannot be given up: " << given_up.message();
      passed_over.insert(victim->object.get());
    }
  }
}

// --- The index -----------------------------------------------------------------------------------

bool TieredStoreImpl::NeedsIndexRoom(const TenantId& tenant, const Manifest& manifest) const {
  return index_.size() >= options_.objects_max && index_.Find(tenant, manifest.key) == nullptr;
}

std::optional<TieredStoreImpl::Victim> TieredStoreImpl::NextIndexVictim(
    const ObjectSet& passed_over) {
  MutexLock lock(&mutex_);
  const auto may_go = [&](const ObjectState& object) {
    return MayGiveUp(object) && !passed_over.contains(&object);
  };
  // Each policy judges what its tier holds: first the one that knows most of the objects.
  const bool most_on_disk = disk_policy_.held_count() >= host_policy_.held_count();
  std::optional<Victim> victim =
      NextVictim(most_on_disk ? disk_policy_ : host_policy_, /*own=*/nullptr, may_go);
  if (victim.has_value()) return victim;
  return NextVictim(most_on_disk ? host_policy_ : disk_policy_, /*own=*/nullptr, may_go);
}

absl::Status TieredStoreImpl::MakeIndexRoom() {
  ObjectSet passed_over;
  for (;;) {
    {
      MutexLock lock(&mutex_);
      if (index_.size() < options_.objects_max) return absl::OkStatus();
    }
    const std::optional<Victim> victim = NextIndexVictim(passed_over);
    if (!victim.has_value()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the limit of ", options_.objects_max,
                       " stored objects (objects_max) is reached, and none may go now"));
    }
    const absl::Status gone = RemoveWhole(victim->object, ChangeCause::kPressure);
    if (gone.ok()) {
      Trim();
    } else {
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "an object cannot be given up: " << gone.message();
      passed_over.insert(victim->object.get());
    }
  }
}

// --- Giving up -----------------------------------------------------------------------------------

absl::Status TieredStoreImpl::GiveUpTopBand(const ObjectPtr& victim) {
  uint32_t keep = 0;
  {
    MutexLock lock(&mutex_);
    if (!MayGiveUp(*victim)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("upload ", victim->upload().ToHex(), " is being read"));
    }
    keep = disk_policy_.Below(*victim, ResidentBands(*victim));
  }
  KVTIER_SYNC_POINT("store.give_up.before_record");
  if (DiskBands(*victim) > keep) {
    KVTIER_RETURN_IF_ERROR(disk_->LowerResidency(victim->upload(), keep));
  }
  KVTIER_SYNC_POINT("store.give_up.after_record");
  {
    MutexLock lock(&mutex_);
    Lower(victim, keep, ChangeCause::kPressure);
  }
  Trim();
  KVTIER_SYNC_POINT("store.give_up.after_bytes");
  return absl::OkStatus();
}

}  // namespace kvtier
