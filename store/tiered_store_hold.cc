#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
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
  // Another call may take the room that we made; a bounded number of times.
  const uint64_t bytes = memory_->ChargeOf(entry, placement);
  absl::StatusOr<std::shared_ptr<BandMemory>> memory;
  for (int attempt = 0; attempt < 4; ++attempt) {
    // A reader costs nobody else a band for good.
    KVTIER_RETURN_IF_ERROR(MakeRoom(bytes, /*own=*/nullptr, RoomCost::kDiskWrites));
    memory = memory_->Allocate(entry, placement);
    if (!absl::IsResourceExhausted(memory.status())) break;
  }
  KVTIER_RETURN_IF_ERROR(memory.status());
  HeldBand held;
  std::vector<SegmentRef> segments;
  for (uint32_t layer = 0; layer < manifest.geometry.layer_count(); ++layer) {
    KVTIER_ASSIGN_OR_RETURN(const ReadResult read, Read(object, band, LayerIndex(layer)));
    held.from_disk = held.from_disk || read.from_disk;
    const std::span<const std::byte> from = read.segment.bytes();
    if (!from.empty()) {
      std::memcpy((*memory)->Writable(LayerIndex(layer)).data(), from.data(), from.size());
    }
    segments.push_back((*memory)->Segment(LayerIndex(layer)));
  }
  (*memory)->Seal();
  // In memory it serves others too, without a second charge.
  Promote(object, band, segments);
  held.memory = ShareFileCopy(object, band, *memory);  // Two at once: ours goes with `memory`.
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
