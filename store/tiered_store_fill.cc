#include <iterator>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

// --- Memory for what is read ---------------------------------------------------------------------

absl::StatusOr<std::shared_ptr<BandMemory>> TieredStoreImpl::AllocateMakingRoom(
    uint64_t bytes, RoomCost most,
    absl::FunctionRef<absl::StatusOr<std::shared_ptr<BandMemory>>()> allocate) {
  constexpr int kAttempts = 4;  // Others may take the room that we make.
  absl::StatusOr<std::shared_ptr<BandMemory>> memory = allocate();
  for (int attempt = 1; attempt < kAttempts && absl::IsResourceExhausted(memory.status());
       ++attempt) {
    KVTIER_RETURN_IF_ERROR(MakeRoom(bytes, /*own=*/nullptr, most));
    memory = allocate();
  }
  return memory;
}

absl::StatusOr<std::shared_ptr<BandMemory>> TieredStoreImpl::AllocatePiece(uint64_t bytes,
                                                                           RoomCost most) {
  return AllocateMakingRoom(memory_->ChargeOfPiece(bytes), most,
                            [&] { return memory_->AllocatePiece(bytes); });
}

absl::StatusOr<std::shared_ptr<BandMemory>> TieredStoreImpl::AllocateFreePiece(uint64_t bytes) {
  for (;;) {
    absl::StatusOr<std::shared_ptr<BandMemory>> piece = memory_->AllocatePiece(bytes);
    if (!absl::IsResourceExhausted(piece.status()) || !DropAFill()) return piece;
  }
}

absl::StatusOr<ReadMemory::Slot> TieredStoreImpl::RoomToRead(const TenantId& tenant,
                                                             ReadMemory& memory) {
  if (ReadMemory::Slot slot = memory.TakeSlot()) return slot;
  absl::StatusOr<ReadMemory::Slot> slot;
  if (memory.has_begun()) {
    // Its slots are in use: it reads ahead, for which nobody gives anything up.
    slot = AllocateFreePiece(memory.slot_bytes());
  } else {
    slot = AllocatePiece(memory.slot_bytes(), RoomCost::kDiskWrites);
    // Where the disk takes nothing more, no room comes by itself: without readers that will be done
    // some day, this one would ask for ever.
    if (absl::IsResourceExhausted(slot.status()) && BeginReadingAtAnyCost(tenant, memory)) {
      slot = AllocatePiece(memory.slot_bytes(), RoomCost::kQuality);
      if (!slot.ok()) EndReadingAtAnyCost(tenant, memory);
    }
    if (slot.ok() && memory.Begin()) {
      for (size_t more = 1; more < ReadMemory::kSlots; ++more) {
        absl::StatusOr<ReadMemory::Slot> another = AllocateFreePiece(memory.slot_bytes());
        if (!another.ok()) break;
        memory.GiveSlot(*std::move(another));
      }
    }
  }
  if (!slot.ok()) ++counters_.reads_refused;
  return slot;
}

void TieredStoreImpl::EndReading(const TenantId& tenant, ReadMemory& memory) {
  memory.Close();
  EndReadingAtAnyCost(tenant, memory);
}

bool TieredStoreImpl::BeginReadingAtAnyCost(const TenantId& tenant, const ReadMemory& memory) {
  MutexLock lock(&mutex_);
  return readers_at_any_cost_.size() < ReadMemory::kReadersAtAnyCost &&
         readers_at_any_cost_.try_emplace(tenant, &memory).second;
}

void TieredStoreImpl::EndReadingAtAnyCost(const TenantId& tenant, const ReadMemory& memory) {
  MutexLock lock(&mutex_);
  const auto found = readers_at_any_cost_.find(tenant);
  if (found != readers_at_any_cost_.end() && found->second == &memory) {
    readers_at_any_cost_.erase(found);
  }
}

// --- Bands that come back ------------------------------------------------------------------------

std::optional<TieredStoreImpl::Victim> TieredStoreImpl::NextVictimWorthLess(
    const ObjectPtr& object, BandIndex band, const ObjectSet& passed_over) {
  MutexLock lock(&mutex_);
  const auto may_go = [&](const ObjectState& other) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return other.pin_count == 0 && !passed_over.contains(&other) &&
           MayLeaveHost(other, RoomCost::kNothing);
  };
  std::optional<Victim> victim = NextVictim(host_policy_, /*own=*/nullptr, may_go);
  if (victim.has_value() && host_policy_.Admit(*object, victim->object.get()) <= band.value()) {
    victim.reset();
  }
  return victim;
}

bool TieredStoreImpl::MakeRoomByValue(const ObjectPtr& object, BandIndex band) {
  const uint64_t bytes = memory_->ChargeOf(object->manifest->bands[band.value()]);
  ObjectSet passed_over;
  for (;;) {
    const TierUsage usage = host_->Usage();
    if (HasRoom(usage, bytes)) return true;
    if (bytes > usage.budget_bytes) return false;
    const std::optional<Victim> victim = NextVictimWorthLess(object, band, passed_over);
    if (!victim.has_value()) return false;
    const absl::Status left = DemoteTopBand(victim->object, RoomCost::kNothing);
    if (!left.ok() || host_->Usage().bytes >= usage.bytes) {
      passed_over.insert(victim->object.get());
    }
  }
}

bool TieredStoreImpl::MayBeFilled(const ObjectState& object, BandIndex band) const {
  const uint32_t in_host = HostBands(object);
  return !object.retired && band.value() < object.band_limit && band.value() >= in_host &&
         !fills_.contains({object.upload(), band}) &&
         (band.value() == in_host ||
          fills_.contains({object.upload(), BandIndex(band.value() - 1)}));
}

std::shared_ptr<BandFill> TieredStoreImpl::BeginFill(const ObjectPtr& object, BandIndex band) {
  {
    MutexLock lock(&mutex_);
    if (!MayBeFilled(*object, band)) return nullptr;
  }
  if (!MakeRoomByValue(object, band)) return nullptr;
  absl::StatusOr<std::shared_ptr<BandMemory>> memory =
      memory_->Allocate(object->manifest->bands[band.value()]);
  if (!memory.ok()) return nullptr;  // Somebody else has taken it.
  auto fill = std::make_shared<BandFill>(*std::move(memory));
  MutexLock lock(&mutex_);
  if (!MayBeFilled(*object, band)) return nullptr;
  fills_[{object->upload(), band}] = fill;
  return fill;
}

void TieredStoreImpl::EndFill(const ObjectPtr& object, BandIndex band,
                              const std::shared_ptr<BandFill>& fill) {
  {
    MutexLock lock(&mutex_);
    const auto found = fills_.find({object->upload(), band});
    if (found != fills_.end() && found->second == fill) fills_.erase(found);
  }
  fill->Abandon();
}

bool TieredStoreImpl::DropAFill() {
  std::shared_ptr<BandFill> dropped;
  {
    MutexLock lock(&mutex_);
    if (fills_.empty()) return false;
    const auto last = std::prev(fills_.end());
    dropped = std::move(last->second);
    fills_.erase(last);
  }
  dropped->Abandon();
  return true;
}

void TieredStoreImpl::DropUselessFills(const ObjectState& object) {
  std::vector<std::shared_ptr<BandFill>> dropped;  // Given up without the lock: they may be busy.
  {
    MutexLock lock(&mutex_);
    const uint32_t in_host = HostBands(object);
    auto next = fills_.lower_bound({object.upload(), BandIndex(0)});
    while (next != fills_.end() && next->first.first == object.upload()) {
      const uint32_t band = next->first.second.value();
      if (band >= in_host && band < object.band_limit && !object.retired) {
        ++next;
      } else {
        dropped.push_back(std::move(next->second));
        next = fills_.erase(next);
      }
    }
  }
  for (const std::shared_ptr<BandFill>& fill : dropped) fill->Abandon();
}

bool TieredStoreImpl::IsNextInHost(const ObjectPtr& object, BandIndex band) {
  MutexLock lock(&mutex_);
  return !object->retired && band.value() < object->band_limit &&
         band.value() == HostBands(*object);
}

void TieredStoreImpl::TakeIn(const ObjectPtr& object, BandIndex band, const BandMemory& memory) {
  std::vector<SegmentRef> layers;
  for (uint32_t layer = 0; layer < memory.layer_count(); ++layer) {
    layers.push_back(memory.Segment(LayerIndex(layer)));
  }
  {
    MutexLock lock(&mutex_);
    if (object->retired || band.value() >= object->band_limit ||
        band.value() != HostBands(*object)) {
      return;
    }
    if (!host_->PutBand(*object->manifest, band, layers).ok()) return;
    ++counters_.bands_filled;
    TellPolicies(object);
  }
  DropUselessFills(*object);
}

}  // namespace kvtier
