#include "store/host_tier.h"

#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "base/mutex.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

class HostTierImpl final : public HostTier {
 public:
  explicit HostTierImpl(std::shared_ptr<HostMemory> memory) : memory_(std::move(memory)) {}

  absl::Status PutBand(const Manifest& manifest, BandIndex band,
                       std::span<const SegmentRef> layers) override {
    KVTIER_RETURN_IF_ERROR(CheckBandSegments(manifest, band, layers));
    KVTIER_RETURN_IF_ERROR(CheckNext(manifest, band));
    std::shared_ptr<const BandMemory> memory = FindSealed(layers);
    if (memory == nullptr) {
      KVTIER_ASSIGN_OR_RETURN(memory, Copy(manifest.bands[band.value()], layers));
    }
    MutexLock lock(&mutex_);
    std::vector<std::shared_ptr<const BandMemory>>& bands = uploads_[manifest.upload_id];
    const size_t band_count = bands.size();
    if (band.value() != band_count) {  // Somebody was faster, or dropped bands, while we copied.
      if (bands.empty()) uploads_.erase(manifest.upload_id);
      return NotNextBandError(manifest, band, static_cast<uint32_t>(band_count));
    }
    bands.push_back(std::move(memory));
    return absl::OkStatus();
  }

  absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                 LayerIndex layer) override {
    const std::shared_ptr<const BandMemory> memory = Band(manifest.upload_id, band);
    if (memory == nullptr || layer.value() >= memory->layer_count()) {
      return absl::NotFoundError("");
    }
    return memory->Segment(layer);
  }

  absl::Status DropBands(const UploadId& upload, uint32_t band_count) override {
    std::vector<std::shared_ptr<const BandMemory>> dropped;  // Freed after the lock.
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return absl::OkStatus();
    std::vector<std::shared_ptr<const BandMemory>>& bands = found->second;
    while (bands.size() > band_count) {
      dropped.push_back(std::move(bands.back()));
      bands.pop_back();
    }
    if (bands.empty()) uploads_.erase(found);
    return absl::OkStatus();
  }

  uint32_t BandCount(const UploadId& upload) override {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    return found == uploads_.end() ? 0 : static_cast<uint32_t>(found->second.size());
  }

  TierUsage Usage() override {
    const MemoryBudget::Usage usage = memory_->budget()->usage();
    return {.bytes = usage.used_bytes, .budget_bytes = usage.budget_bytes};
  }

  uint64_t ChargeOf(const Manifest& manifest, BandIndex band,
                    std::span<const SegmentRef> layers) const override {
    return FindSealed(layers) != nullptr ? 0 : memory_->ChargeOf(manifest.bands[band.value()]);
  }

  std::shared_ptr<const BandMemory> Band(const UploadId& upload, BandIndex band) override {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end() || band.value() >= found->second.size()) return nullptr;
    return found->second[band.value()];
  }

  bool IsTopBandHeld(const UploadId& upload) override {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    return found != uploads_.end() && found->second.back().use_count() > 1;
  }

 private:
  absl::Status CheckNext(const Manifest& manifest, BandIndex band) {
    const uint32_t band_count = BandCount(manifest.upload_id);
    return band.value() == band_count ? absl::OkStatus()
                                      : NotNextBandError(manifest, band, band_count);
  }

  std::shared_ptr<const BandMemory> FindSealed(std::span<const SegmentRef> layers) const {
    std::shared_ptr<const BandMemory> memory = memory_->Find(layers);
    return memory != nullptr && memory->sealed() ? memory : nullptr;
  }

  absl::StatusOr<std::shared_ptr<const BandMemory>> Copy(const BandEntry& band,
                                                         std::span<const SegmentRef> layers) {
    KVTIER_ASSIGN_OR_RETURN(const std::shared_ptr<BandMemory> memory, memory_->Allocate(band));
    for (uint32_t layer = 0; layer < layers.size(); ++layer) {
      const std::span<const std::byte> from = layers[layer].bytes();
      if (from.empty()) continue;
      std::memcpy(memory->Writable(LayerIndex(layer)).data(), from.data(), from.size());
    }
    memory->Seal();
    return memory;
  }

  const std::shared_ptr<HostMemory> memory_;
  Mutex mutex_;
  // No upload without bands.
  absl::flat_hash_map<UploadId, std::vector<std::shared_ptr<const BandMemory>>> uploads_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<HostTier> MakeHostTier(std::shared_ptr<HostMemory> memory) {
  return std::make_unique<HostTierImpl>(std::move(memory));
}

std::unique_ptr<HostTier> MakeHostTier(uint64_t budget_bytes) {
  return MakeHostTier(HostMemory::Create({}, std::make_shared<MemoryBudget>(budget_bytes)));
}

}  // namespace kvtier
