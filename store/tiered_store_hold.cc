#include <cstring>
#include <optional>
#include <utility>

#include "base/status_macros.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

absl::StatusOr<TieredStoreImpl::HeldBand> TieredStoreImpl::Hold(const ObjectPtr& object,
                                                                BandIndex band,
                                                                BandPlacement placement) {
  const Manifest& manifest = *object->manifest;
  const BandEntry& entry = manifest.bands[band.value()];
  const auto is_fine = [&](const BandMemory& memory) {
    return placement == BandPlacement::kAny || memory.is_file() || entry.encoded_bytes() == 0;
  };
  if (std::shared_ptr<const BandMemory> memory = host_->Band(object->upload(), band);
      memory != nullptr && is_fine(*memory)) {
    return HeldBand{.memory = std::move(memory)};
  }
  if (std::shared_ptr<const BandMemory> copy = FileCopy(object, band, placement)) {
    return HeldBand{.memory = std::move(copy)};
  }
  // A reader costs nobody else a band for good.
  KVTIER_ASSIGN_OR_RETURN(
      const std::shared_ptr<BandMemory> memory,
      AllocateMakingRoom(memory_->ChargeOf(entry, placement), RoomCost::kDiskWrites,
                         [&] { return memory_->Allocate(entry, placement); }));
  HeldBand held;
  for (uint32_t i = 0; i < manifest.geometry.layer_count(); ++i) {
    const LayerIndex layer(i);
    const MutableByteSpan out = memory->Writable(layer);
    std::optional<SegmentRef> copy;  // From here if there is one; else the disk's is read into it.
    if (absl::StatusOr<SegmentRef> in_host = host_->Get(manifest, band, layer); in_host.ok()) {
      copy = *std::move(in_host);
    } else {
      KVTIER_ASSIGN_OR_RETURN(copy, ReadDisk(object, band, layer, out));
    }
    if (!copy.has_value()) {
      held.from_disk = true;
    } else if (!out.empty()) {
      std::memcpy(out.data(), copy->bytes().data(), out.size());
    }
  }
  memory->Seal();
  // In memory it serves others too, without a second charge.
  TakeIn(object, band, *memory);
  held.memory = ShareFileCopy(object, band, memory);  // Two at once: ours goes with `memory`.
  return held;
}

std::shared_ptr<const BandMemory> TieredStoreImpl::FileCopy(const ObjectPtr& object, BandIndex band,
                                                            BandPlacement placement) {
  if (placement != BandPlacement::kFile) return nullptr;
  MutexLock lock(&mutex_);
  const auto found = object->file_copies.find(band.value());
  return found == object->file_copies.end() ? nullptr : found->second.lock();
}

std::shared_ptr<const BandMemory> TieredStoreImpl::ShareFileCopy(
    const ObjectPtr& object, BandIndex band, const std::shared_ptr<const BandMemory>& memory) {
  if (!memory->is_file()) return memory;
  MutexLock lock(&mutex_);
  std::weak_ptr<const BandMemory>& shared = object->file_copies[band.value()];
  if (std::shared_ptr<const BandMemory> earlier = shared.lock()) return earlier;
  shared = memory;
  return memory;
}

}  // namespace kvtier
