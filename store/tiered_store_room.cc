#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

absl::Status TieredStoreImpl::MakeRoom(uint64_t bytes, const ObjectPtr& own,
                                       OnFullDisk on_full_disk) {
  std::set<ObjectPtr> tried;
  const auto has_room = [&](const TierUsage& usage) {
    return usage.budget_bytes == 0 ||
           (usage.bytes <= usage.budget_bytes && bytes <= usage.budget_bytes - usage.bytes);
  };
  for (;;) {
    const TierUsage usage = host_->Usage();
    if (has_room(usage)) return absl::OkStatus();
    ObjectPtr victim;
    std::optional<Turns::Turn> turn;
    if (disk_ != nullptr && bytes <= usage.budget_bytes) {
      MutexLock lock(&mutex_);
      for (const ObjectPtr& candidate : index_.in_host()) {
        if (tried.contains(candidate)) continue;
        // A reader pinned bands that have been given up since, and only host memory has them.
        if (candidate->pin_count > 0 &&
            HostBands(*candidate) > std::max(candidate->band_limit, DiskBands(*candidate))) {
          continue;
        }
        if (candidate != own) {
          std::optional<Turns::Turn> free =
              turns_.TryTake(TurnName(candidate->tenant, candidate->manifest->key));
          if (!free.has_value()) continue;
          turn.emplace(*std::move(free));
        }
        victim = candidate;
        break;
      }
    }
    if (victim == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "host memory budget (host_budget_bytes) of ", usage.budget_bytes, " bytes: ", usage.bytes,
          " in use and not evictable now, ", bytes, " more needed"));
    }
    const absl::Status demoted = DemoteTopBand(victim, on_full_disk);
    if (!demoted.ok()) {
      if (on_full_disk == OnFullDisk::kRefuse) return demoted;
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "cannot demote: " << demoted.message();
      tried.insert(victim);
    }
  }
}

absl::Status TieredStoreImpl::DemoteTopBand(const ObjectPtr& victim, OnFullDisk on_full_disk) {
  const uint32_t host_bands = HostBands(*victim);
  if (host_bands > 0) {
    const absl::Status on_disk = EnsureOnDisk(victim);
    if (absl::IsResourceExhausted(on_disk) && on_full_disk == OnFullDisk::kGiveUpBands) {
      return GiveUpTopBand(victim);
    }
    KVTIER_RETURN_IF_ERROR(on_disk);
    KVTIER_SYNC_POINT("store.demote.before_host_drop");
    KVTIER_RETURN_IF_ERROR(host_->DropBands(victim->upload(), host_bands - 1));
    ++counters_.bands_demoted;
    KVTIER_SYNC_POINT("store.demote.after_host_drop");
  }
  MutexLock lock(&mutex_);
  if (HostBands(*victim) == 0) index_.RemoveFromHost(victim);
  return absl::OkStatus();
}

absl::Status TieredStoreImpl::EnsureOnDisk(const ObjectPtr& object) {
  const Manifest& manifest = *object->manifest;
  uint32_t resident = 0;
  {
    MutexLock lock(&mutex_);
    resident = ResidentBands(*object);
  }
  const uint32_t on_disk = DiskBands(*object);
  if (on_disk >= resident) return absl::OkStatus();
  KVTIER_SYNC_POINT("store.demote.before_disk");
  absl::Status stored;
  for (uint32_t band = on_disk; stored.ok() && band < resident; ++band) {
    std::vector<SegmentRef> layers;
    for (uint32_t layer = 0; layer < manifest.geometry.layer_count(); ++layer) {
      absl::StatusOr<SegmentRef> segment = host_->Get(manifest, BandIndex(band), LayerIndex(layer));
      if (!segment.ok()) return absl::AbortedError("the object is being given up");
      layers.push_back(*std::move(segment));
    }
    stored = disk_->PutBand(manifest, BandIndex(band), layers);
  }
  if (stored.ok()) {
    stored = disk_->SealPrefix(object->tenant, manifest, resident, object->sealed_at);
  }
  if (!stored.ok()) {
    const absl::Status removed = disk_->DropBands(object->upload(), on_disk);
    if (!removed.ok()) {
      KVTIER_LOG(WARNING) << "segments of a failed demotion stay for now: " << removed.message();
    }
    return stored;
  }
  KVTIER_SYNC_POINT("store.demote.after_disk");
  return absl::OkStatus();
}

// The disk is full too: quality goes before whole objects do (design.md section 2).
absl::Status TieredStoreImpl::GiveUpTopBand(const ObjectPtr& victim) {
  uint32_t keep = 0;
  {
    MutexLock lock(&mutex_);
    const uint32_t resident = ResidentBands(*victim);
    if (victim->pin_count > 0 || resident <= 1) {
      return absl::ResourceExhaustedError("the disk is full");
    }
    keep = resident - 1;
    Lower(victim, keep, ChangeCause::kPressure);
  }
  return host_->DropBands(victim->upload(), keep);
}

}  // namespace kvtier
