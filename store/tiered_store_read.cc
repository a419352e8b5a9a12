#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "kvcache/segment.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

// One reader of one upload. Segments read from disk are kept until their band is complete, as far
// as host memory has free room for them, and then offered to it.
class PinnedObjectImpl final : public PinnedObject {
 public:
  PinnedObjectImpl(TieredStoreImpl& store, TieredStoreImpl::ObjectPtr object,
                   uint32_t resident_bands, bool is_counted)
      : store_(store),
        object_(std::move(object)),
        resident_bands_(resident_bands),
        is_counted_(is_counted) {}
  ~PinnedObjectImpl() override;

  const std::shared_ptr<const Manifest>& manifest() const override { return object_->manifest; }
  uint32_t resident_bands() const override { return resident_bands_; }
  absl::StatusOr<SegmentRef> Read(BandIndex band, LayerIndex layer) override;
  std::optional<SegmentRef> ReadFromMemory(BandIndex band, LayerIndex layer) override;
  bool TryRelease() override;
  void LeaveUncounted() override {
    MutexLock lock(&mutex_);
    is_counted_ = false;
  }
  absl::StatusOr<std::shared_ptr<const BandMemory>> Hold(BandIndex band,
                                                         BandPlacement placement) override;

  const TieredStoreImpl::ObjectPtr& object() const { return object_; }

 private:
  struct BandFromDisk {
    std::vector<SegmentRef> layers;  // [layers]
    std::vector<bool> is_there;      // [layers]; an empty segment has no bytes to tell it by.
    uint32_t count = 0;
    std::vector<MemoryCharge> charges;  // Of what is in `layers`.
  };

  // What failed, until the same succeeds: a reader may ask again for what there was no room for.
  using Failed = std::set<std::pair<BandIndex, std::optional<LayerIndex>>>;  // Nothing: the band.

  bool IsThere(BandIndex band, LayerIndex layer) const {
    return band.value() < resident_bands_ &&
           layer.value() < object_->manifest->geometry.layer_count();
  }
  void Collect(BandIndex band, LayerIndex layer, const SegmentRef& segment);
  void Count() ABSL_LOCKS_EXCLUDED(mutex_);

  TieredStoreImpl& store_;
  const TieredStoreImpl::ObjectPtr object_;
  const uint32_t resident_bands_;

  Mutex mutex_;
  bool is_counted_ ABSL_GUARDED_BY(mutex_);
  bool has_read_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_read_disk_ ABSL_GUARDED_BY(mutex_) = false;
  Failed failed_ ABSL_GUARDED_BY(mutex_);
  bool is_released_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<BandIndex, BandFromDisk> from_disk_ ABSL_GUARDED_BY(mutex_);
};

PinnedObjectImpl::~PinnedObjectImpl() {
  {
    MutexLock lock(&mutex_);
    if (is_released_) return;
  }
  Count();
  store_.Unpin(object_);
}

bool PinnedObjectImpl::TryRelease() {
  if (!store_.TryUnpin(object_)) return false;
  {
    MutexLock lock(&mutex_);
    is_released_ = true;
  }
  Count();
  return true;
}

void PinnedObjectImpl::Count() {
  MutexLock lock(&mutex_);
  if (!is_counted_) return;
  StoreCounters& counters = store_.counters_;
  ++(!failed_.empty() ? counters.failures
     : has_read_disk_ ? counters.disk_hits
     : has_read_      ? counters.host_hits
                      : counters.misses);
  ++counters.requests;
}

std::optional<SegmentRef> PinnedObjectImpl::ReadFromMemory(BandIndex band, LayerIndex layer) {
  if (!IsThere(band, layer)) return std::nullopt;
  absl::StatusOr<SegmentRef> segment = store_.host_->Get(*object_->manifest, band, layer);
  if (!segment.ok()) return std::nullopt;
  MutexLock lock(&mutex_);
  has_read_ = true;
  failed_.erase({band, layer});
  return *std::move(segment);
}

absl::StatusOr<SegmentRef> PinnedObjectImpl::Read(BandIndex band, LayerIndex layer) {
  if (!IsThere(band, layer)) {
    return absl::OutOfRangeError(absl::StrCat("band ", band.value(), " of ", resident_bands_,
                                              ", layer ", layer.value(), " of ",
                                              object_->manifest->geometry.layer_count()));
  }
  absl::StatusOr<TieredStoreImpl::ReadResult> result = store_.Read(object_, band, layer);
  {
    MutexLock lock(&mutex_);
    has_read_ = true;
    if (!result.ok()) {
      failed_.insert({band, layer});
      return result.status();
    }
    failed_.erase({band, layer});
    if (result->from_disk) has_read_disk_ = true;
  }
  if (result->from_disk) Collect(band, layer, result->segment);
  return std::move(result->segment);
}

absl::StatusOr<std::shared_ptr<const BandMemory>> PinnedObjectImpl::Hold(BandIndex band,
                                                                         BandPlacement placement) {
  if (band.value() >= resident_bands_) {
    return absl::OutOfRangeError(
        absl::StrCat("band ", band.value(), " of ", resident_bands_, " that are resident"));
  }
  absl::StatusOr<TieredStoreImpl::HeldBand> held = store_.Hold(object_, band, placement);
  MutexLock lock(&mutex_);
  has_read_ = true;
  if (!held.ok()) {
    failed_.insert({band, std::nullopt});
    return held.status();
  }
  failed_.erase({band, std::nullopt});
  if (held->from_disk) has_read_disk_ = true;
  return std::move(held->memory);
}

void PinnedObjectImpl::Collect(BandIndex band, LayerIndex layer, const SegmentRef& segment) {
  std::vector<SegmentRef> complete;
  {
    MutexLock lock(&mutex_);
    absl::StatusOr<MemoryCharge> charge =
        MemoryCharge::Take(store_.memory_->budget(), segment.bytes().size());
    if (!charge.ok()) return;  // No room to keep it.
    const uint32_t layers = object_->manifest->geometry.layer_count();
    BandFromDisk& collected = from_disk_[band];
    collected.layers.resize(layers);
    collected.is_there.resize(layers);
    if (collected.is_there[layer.value()]) return;
    collected.is_there[layer.value()] = true;
    collected.layers[layer.value()] = segment;
    collected.charges.push_back(*std::move(charge));
    if (++collected.count < layers) return;
    complete = std::move(collected.layers);
    from_disk_.erase(band);  // With its charges: host memory takes its own.
  }
  store_.Promote(object_, band, complete);
}

// --- Pins ----------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<PinnedObject>> TieredStoreImpl::Pin(
    const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) {
  MutexLock lock(&mutex_);
  const ObjectPtr object = FindLive(tenant, key);
  host_policy_.Use(tenant, key);
  disk_policy_.Use(tenant, key);
  if (const auto own = quota_policies_.find(tenant); own != quota_policies_.end()) {
    own->second.Use(tenant, key);
  }
  const uint32_t resident = object == nullptr ? 0 : ResidentBands(*object);
  if (resident == 0) {
    ++counters_.misses;
    ++counters_.requests;
    return absl::NotFoundError("");
  }
  if (upload.has_value() && *upload != object->upload()) {
    ++counters_.failures;
    ++counters_.requests;
    return absl::AbortedError(absl::StrCat("upload ", upload->ToHex(), " is not the current one; ",
                                           object->upload().ToHex(), " is"));
  }
  ++object->pin_count;
  ++pin_count_;
  return std::make_unique<PinnedObjectImpl>(*this, object, resident, /*is_counted=*/true);
}

void TieredStoreImpl::Unpin(const ObjectPtr& object) {
  {
    MutexLock lock(&mutex_);
    --pin_count_;
    if (--object->pin_count > 0 || !garbage_.contains(object)) return;
  }
  Trim();
}

bool TieredStoreImpl::TryUnpin(const ObjectPtr& object) {
  MutexLock lock(&mutex_);
  if (object->pin_count == 1 && garbage_.contains(object)) return false;
  --pin_count_;
  --object->pin_count;
  return true;
}

// --- Reads ---------------------------------------------------------------------------------------

absl::StatusOr<TieredStoreImpl::ReadResult> TieredStoreImpl::Read(const ObjectPtr& object,
                                                                  BandIndex band,
                                                                  LayerIndex layer) {
  const Manifest& manifest = *object->manifest;
  absl::StatusOr<SegmentRef> segment = host_->Get(manifest, band, layer);
  if (segment.ok()) return ReadResult{*std::move(segment), /*from_disk=*/false};
  KVTIER_SYNC_POINT("store.read.after_host_miss");
  if (disk_ != nullptr) {
    segment = disk_->Get(manifest, band, layer);
    if (segment.ok()) return ReadResult{*std::move(segment), /*from_disk=*/true};
    if (absl::IsDataLoss(segment.status())) {
      ++counters_.checksum_failures;
      KVTIER_LOG(ERROR) << segment.status().message();
      absl::StatusOr<SegmentRef> intact = host_->Get(manifest, band, layer);
      if (intact.ok()) return ReadResult{*std::move(intact), /*from_disk=*/false};
      Lose(object, band);
      return segment.status();
    }
    if (!absl::IsNotFound(segment.status())) return segment.status();
  }
  return absl::DataLossError(absl::StrCat("band ", band.value(), " of upload ",
                                          object->upload().ToHex(), " has been given up"));
}

void TieredStoreImpl::Lose(const ObjectPtr& object, BandIndex band) {
  const uint32_t keep = band.value();
  {
    MutexLock lock(&mutex_);
    Lower(object, keep, ChangeCause::kLoss);
  }
  // At once, pinned or not: nobody can read them.
  absl::Status removed = host_->DropBands(object->upload(), keep);
  if (disk_ != nullptr) removed.Update(disk_->DropBands(object->upload(), keep));
  if (!removed.ok()) KVTIER_LOG(WARNING) << "damaged bands stay for now: " << removed.message();
}

void TieredStoreImpl::Promote(const ObjectPtr& object, BandIndex band,
                              const std::vector<SegmentRef>& layers) {
  const uint64_t bytes = host_->ChargeOf(*object->manifest, band, layers);
  const auto is_next = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !object->retired && band.value() < object->band_limit &&
           band.value() == HostBands(*object);
  };
  if (bytes > 0 && !HasRoom(host_->Usage(), bytes)) {
    {
      MutexLock lock(&mutex_);
      if (!is_next() || host_policy_.Admit(*object) <= band.value()) return;
    }
    if (!MakeRoom(bytes, /*own=*/nullptr, RoomCost::kNothing).ok()) return;
  }
  MutexLock lock(&mutex_);
  if (!is_next()) return;
  if (host_->PutBand(*object->manifest, band, layers).ok()) TellPolicies(object);
}

// --- Verify --------------------------------------------------------------------------------------

std::unique_ptr<PinnedObjectImpl> TieredStoreImpl::PinUncounted(const ObjectPtr& object) {
  ++object->pin_count;
  ++pin_count_;
  return std::make_unique<PinnedObjectImpl>(*this, object, ResidentBands(*object),
                                            /*is_counted=*/false);
}

absl::Status TieredStoreImpl::Verify(const TenantId& tenant, const Key& key,
                                     const std::optional<UploadId>& upload) {
  std::unique_ptr<PinnedObjectImpl> pinned;
  {
    MutexLock lock(&mutex_);
    KVTIER_ASSIGN_OR_RETURN(const ObjectPtr object, FindNamed(tenant, key, upload));
    if (ResidentBands(*object) == 0) return absl::NotFoundError("");
    pinned = PinUncounted(object);
  }
  for (uint32_t band = 0; band < pinned->resident_bands(); ++band) {
    for (uint32_t layer = 0; layer < pinned->manifest()->geometry.layer_count(); ++layer) {
      KVTIER_RETURN_IF_ERROR(
          VerifySegmentCopies(pinned->object(), BandIndex(band), LayerIndex(layer)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<VerifiedCopies> TieredStoreImpl::VerifyCopies(const UploadId& upload, BandIndex band,
                                                             LayerIndex layer) {
  std::unique_ptr<PinnedObjectImpl> pinned;
  {
    MutexLock lock(&mutex_);
    const ObjectPtr object = index_.FindUpload(upload);
    if (object == nullptr || object->retired || band.value() >= ResidentBands(*object) ||
        layer.value() >= object->manifest->geometry.layer_count()) {
      return absl::NotFoundError("");
    }
    pinned = PinUncounted(object);
  }
  return VerifySegmentCopies(pinned->object(), band, layer);
}

std::optional<ObjectName> TieredStoreImpl::NextObject(const std::optional<ObjectName>& after) {
  MutexLock lock(&mutex_);
  const ObjectPtr next = index_.Next(after);
  if (next == nullptr) return std::nullopt;
  return ObjectName{next->tenant, next->manifest->key};
}

// Both copies, where there are two. A damaged one goes if the other is intact.
absl::StatusOr<VerifiedCopies> TieredStoreImpl::VerifySegmentCopies(const ObjectPtr& object,
                                                                    BandIndex band,
                                                                    LayerIndex layer) {
  VerifiedCopies verified;
  const Manifest& manifest = *object->manifest;
  const SegmentEntry& entry = manifest.segment(band, layer);
  const HeadRange heads{0, manifest.geometry.kv_heads};
  absl::StatusOr<SegmentRef> in_host = host_->Get(manifest, band, layer);
  if (in_host.ok()) {
    verified.bytes_read += in_host->bytes().size();
    const absl::Status intact = VerifySegment(entry, heads, in_host->bytes());
    if (!intact.ok()) {
      ++counters_.checksum_failures;
      KVTIER_LOG(ERROR) << "host memory is damaged: " << intact.message();
      in_host = absl::NotFoundError("");
      KVTIER_ASSIGN_OR_RETURN(verified.repaired, DropDamagedHostCopy(object, band));
      if (!verified.repaired) return intact;
    }
  }
  absl::StatusOr<SegmentRef> on_disk = absl::NotFoundError("");
  if (disk_ != nullptr) on_disk = disk_->Get(manifest, band, layer);
  if (absl::IsDataLoss(on_disk.status())) {
    ++counters_.checksum_failures;
    KVTIER_LOG(ERROR) << on_disk.status().message();
    if (!in_host.ok()) {
      Lose(object, band);
      return on_disk.status();
    }
    verified.bytes_read += entry.encoded_bytes();
    KVTIER_ASSIGN_OR_RETURN(verified.repaired, RepairDiskCopy(object, band));
  } else if (!on_disk.ok() && !absl::IsNotFound(on_disk.status())) {
    return on_disk.status();
  } else if (on_disk.ok()) {
    verified.bytes_read += on_disk->bytes().size();
  }
  if (!in_host.ok() && !on_disk.ok()) {
    return absl::DataLossError(absl::StrCat("band ", band.value(), " of upload ",
                                            object->upload().ToHex(), " has been given up"));
  }
  const SegmentRef& copy = in_host.ok() ? *in_host : *on_disk;
  const absl::Status content = CheckSegmentContent(manifest, band, layer, copy.bytes());
  if (!content.ok()) {
    // Put refuses such bytes, so an older store took them in. Every copy has them: nobody misses
    // what nobody can read, and the next look at it must not find it again.
    KVTIER_LOG(ERROR) << "band " << band.value() << " of upload " << object->upload().ToHex()
                      << " was stored intact but wrong: " << content.message();
    Lose(object, band);
    return content;
  }
  return verified;
}

// Host memory's copy of `band` is damaged: it and what is above it give way to the disk's. Bands
// that only host memory has go with them. False: the disk does not have this one, so all of them
// are given up. Takes its turn, so that nobody is copying them to the disk meanwhile.
absl::StatusOr<bool> TieredStoreImpl::DropDamagedHostCopy(const ObjectPtr& object, BandIndex band) {
  KVTIER_SYNC_POINT("store.verify.before_repair");
  const Turns::Turn turn = turns_.Take(TurnName(object->tenant, object->manifest->key));
  bool is_retired = false;
  {
    MutexLock lock(&mutex_);
    is_retired = object->retired;
  }
  // Without a record the bytes of a retired upload are still there for those who pinned them; of a
  // current one they are what a failed attempt left.
  const uint32_t on_disk =
      is_retired || disk_ == nullptr ? DiskBands(*object) : disk_->SealedBands(object->upload());
  if (on_disk <= band.value()) {
    Lose(object, band);
    return false;
  }
  {
    MutexLock lock(&mutex_);
    if (on_disk < ResidentBands(*object)) Lower(object, on_disk, ChangeCause::kLoss);
  }
  KVTIER_RETURN_IF_ERROR(host_->DropBands(object->upload(), band.value()));
  MutexLock lock(&mutex_);
  TellPolicies(object);
  return true;
}

// The disk's copy of `band` is damaged, host memory's is not: writes it again from there. Bands
// that only the disk has, above what host memory holds, go with the damaged one.
absl::StatusOr<bool> TieredStoreImpl::RepairDiskCopy(const ObjectPtr& object, BandIndex band) {
  KVTIER_SYNC_POINT("store.verify.before_repair");
  const Turns::Turn turn = turns_.Take(TurnName(object->tenant, object->manifest->key));
  const uint32_t in_host = HostBands(*object);
  if (in_host <= band.value()) return false;  // Demoted meanwhile; a read will find it.
  bool has_lost = false;
  {
    MutexLock lock(&mutex_);
    // Replaced or removed while we waited: the record of its key is not ours to write any more.
    if (object->retired) return false;
    has_lost = in_host < ResidentBands(*object);
    if (has_lost) Lower(object, in_host, ChangeCause::kLoss);
  }
  KVTIER_RETURN_IF_ERROR(disk_->DropBands(object->upload(), band.value()));
  KVTIER_RETURN_IF_ERROR(
      StoreMakingRoom(BytesNotOnDisk(object), [&] { return EnsureOnDisk(object); }));
  if (!has_lost) return true;
  return absl::DataLossError(absl::StrCat("bands of upload ", object->upload().ToHex(), " from ",
                                          in_host, " on are lost"));
}

}  // namespace kvtier
