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
namespace {

absl::Status GivenUp(const ObjectState& object, BandIndex band) {
  return absl::DataLossError(absl::StrCat("band ", band.value(), " of upload ",
                                          object.upload().ToHex(), " has been given up"));
}

}  // namespace

// One reader of one upload. What it reads from disk may come back into host memory, band by band:
// whether there is room for a band that is worth it is asked when its first segment is read.
class PinnedObjectImpl final : public PinnedObject {
 public:
  PinnedObjectImpl(TieredStoreImpl& store, TieredStoreImpl::ObjectPtr object,
                   uint32_t resident_bands, bool is_counted)
      : store_(store),
        object_(std::move(object)),
        resident_bands_(resident_bands),
        band_count_(resident_bands),
        layers_(AllLayers()),
        is_counted_(is_counted) {}
  ~PinnedObjectImpl() override;

  const std::shared_ptr<const Manifest>& manifest() const override { return object_->manifest; }
  uint32_t resident_bands() const override { return resident_bands_; }
  void WillRead(uint32_t band_count, LayerRange layers) override {
    band_count_ = std::min(band_count_, band_count);
    layers_ = layers;
  }
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
  // What failed, until the same succeeds: a reader may ask again for what there was no room for.
  using Failed = std::set<std::pair<BandIndex, std::optional<LayerIndex>>>;  // Nothing: the band.

  LayerRange AllLayers() const { return {0, object_->manifest->geometry.layer_count()}; }
  bool IsThere(BandIndex band, LayerIndex layer) const {
    return band.value() < band_count_ && layer.value() >= layers_.begin &&
           layer.value() < layers_.end;
  }
  // Made when something is read.
  std::shared_ptr<ReadMemory> Memory() ABSL_LOCKS_EXCLUDED(mutex_);
  // Copies what was read from disk into its band's memory, if that is coming back. What comes back
  // is decided with the first segment, for all bands: later ones may be read two at a time.
  void Fill(BandIndex band, LayerIndex layer, const SegmentRef& segment)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // `first`, `layer`: of that segment.
  void BeginFills(BandIndex first, LayerIndex layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // The lower ones first: a higher one may become whole before them.
  void TakeInWholeBands() ABSL_LOCKS_EXCLUDED(take_in_mutex_, mutex_);
  // Gives back what the reader has of the store's memory; segments that were read stay.
  void LetGo() ABSL_LOCKS_EXCLUDED(mutex_);
  void Count() ABSL_LOCKS_EXCLUDED(mutex_);

  TieredStoreImpl& store_;
  const TieredStoreImpl::ObjectPtr object_;
  const uint32_t resident_bands_;
  // What will be read; changed by WillRead alone, before that.
  uint32_t band_count_;
  LayerRange layers_;

  Mutex take_in_mutex_;  // One thread at a time takes bands in. Before all other locks.
  Mutex mutex_;
  bool is_counted_ ABSL_GUARDED_BY(mutex_);
  bool has_read_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_read_disk_ ABSL_GUARDED_BY(mutex_) = false;
  Failed failed_ ABSL_GUARDED_BY(mutex_);
  bool is_released_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<ReadMemory> memory_ ABSL_GUARDED_BY(mutex_);
  bool has_begun_fills_ ABSL_GUARDED_BY(mutex_) = false;
  // Of the bands that this reader brings back.
  std::map<BandIndex, std::shared_ptr<BandFill>> fills_ ABSL_GUARDED_BY(mutex_);
};

PinnedObjectImpl::~PinnedObjectImpl() {
  {
    MutexLock lock(&mutex_);
    if (is_released_) return;
  }
  Count();
  LetGo();
  store_.Unpin(object_);
}

bool PinnedObjectImpl::TryRelease() {
  if (!store_.TryUnpin(object_)) return false;
  {
    MutexLock lock(&mutex_);
    is_released_ = true;
  }
  Count();
  LetGo();
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
    return absl::OutOfRangeError(absl::StrCat("band ", band.value(), " of ", band_count_,
                                              ", layer ", layer.value(), " of [", layers_.begin,
                                              ", ", layers_.end, ")"));
  }
  absl::StatusOr<TieredStoreImpl::ReadResult> result = store_.Read(object_, band, layer, *Memory());
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
  if (result->from_disk && !result->segment.bytes().empty()) Fill(band, layer, result->segment);
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

void PinnedObjectImpl::BeginFills(BandIndex first, LayerIndex layer) {
  // By a reader who will read all of it.
  const Manifest& manifest = *object_->manifest;
  if (layers_ != AllLayers() || layer != BandFill::FirstLayer(manifest.bands[first.value()])) {
    return;
  }
  for (uint32_t band = 0; band < band_count_; ++band) {
    if (BandFill::FirstLayer(manifest.bands[band]) < layer) continue;  // He has passed it.
    std::shared_ptr<BandFill> fill = store_.BeginFill(object_, BandIndex(band));
    if (fill == nullptr) continue;
    MutexLock lock(&mutex_);
    fills_[BandIndex(band)] = std::move(fill);
  }
}

void PinnedObjectImpl::Fill(BandIndex band, LayerIndex layer, const SegmentRef& segment) {
  bool is_first = false;
  {
    MutexLock lock(&mutex_);
    is_first = !std::exchange(has_begun_fills_, true);
  }
  if (is_first) BeginFills(band, layer);
  std::shared_ptr<BandFill> fill;
  {
    MutexLock lock(&mutex_);
    if (const auto found = fills_.find(band); found != fills_.end()) fill = found->second;
  }
  if (fill == nullptr) return;
  if (fill->Add(layer, segment.bytes())) TakeInWholeBands();
}

void PinnedObjectImpl::TakeInWholeBands() {
  MutexLock in_order(&take_in_mutex_);
  std::map<BandIndex, std::shared_ptr<BandFill>> fills;
  {
    MutexLock lock(&mutex_);
    fills = fills_;
  }
  for (const auto& [band, fill] : fills) {
    if (!store_.IsNextInHost(object_, band)) continue;
    const std::shared_ptr<const BandMemory> memory = fill->TakeWhole();
    if (memory == nullptr) continue;
    store_.TakeIn(object_, band, *memory);
    store_.EndFill(object_, band, fill);
  }
}

void PinnedObjectImpl::LetGo() {
  std::map<BandIndex, std::shared_ptr<BandFill>> fills;
  std::shared_ptr<ReadMemory> memory;
  {
    MutexLock lock(&mutex_);
    fills.swap(fills_);
    memory.swap(memory_);
  }
  for (const auto& [band, fill] : fills) store_.EndFill(object_, band, fill);
  if (memory != nullptr) store_.EndReading(object_->tenant, *memory);
}

std::shared_ptr<ReadMemory> PinnedObjectImpl::Memory() {
  MutexLock lock(&mutex_);
  if (memory_ == nullptr) {
    uint64_t segment_bytes_max = 0;
    for (uint32_t band = 0; band < band_count_; ++band) {
      for (uint32_t layer = layers_.begin; layer < layers_.end; ++layer) {
        segment_bytes_max = std::max(
            segment_bytes_max,
            object_->manifest->segment(BandIndex(band), LayerIndex(layer)).encoded_bytes());
      }
    }
    memory_ = ReadMemory::Create(segment_bytes_max);
  }
  return memory_;
}

// --- Pins ----------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<PinnedObject>> TieredStoreImpl::Pin(
    const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) {
  MutexLock lock(&mutex_);
  const ObjectPtr object = FindLive(tenant, key);
  host_policy_.Use(tenant, key, object.get());
  if (disk_ != nullptr) disk_policy_.Use(tenant, key, object.get());
  if (const auto own = quota_policies_.find(tenant); own != quota_policies_.end()) {
    own->second.Use(tenant, key, object.get());
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
                                                                  BandIndex band, LayerIndex layer,
                                                                  ReadMemory& memory) {
  const Manifest& manifest = *object->manifest;
  absl::StatusOr<SegmentRef> segment = host_->Get(manifest, band, layer);
  if (segment.ok()) return ReadResult{*std::move(segment), /*from_disk=*/false};
  KVTIER_SYNC_POINT("store.read.after_host_miss");
  if (DiskBands(*object) <= band.value()) return GivenUp(*object, band);
  KVTIER_ASSIGN_OR_RETURN(ReadMemory::Slot slot, RoomToRead(object->tenant, memory));
  const uint64_t bytes = manifest.segment(band, layer).encoded_bytes();
  const MutableByteSpan out = slot->Writable(LayerIndex(0)).first(bytes);
  SegmentRef read = memory.Attach(std::move(slot), bytes);
  KVTIER_ASSIGN_OR_RETURN(std::optional<SegmentRef> in_host, ReadDisk(object, band, layer, out));
  if (in_host.has_value()) return ReadResult{*std::move(in_host), /*from_disk=*/false};
  return ReadResult{std::move(read), /*from_disk=*/true};
}

absl::StatusOr<std::optional<SegmentRef>> TieredStoreImpl::ReadDisk(const ObjectPtr& object,
                                                                    BandIndex band,
                                                                    LayerIndex layer,
                                                                    MutableByteSpan out) {
  if (DiskBands(*object) <= band.value()) return GivenUp(*object, band);
  const Manifest& manifest = *object->manifest;
  const absl::Status read = disk_->Read(manifest, band, layer, out);
  if (read.ok()) return std::nullopt;
  if (absl::IsNotFound(read)) return GivenUp(*object, band);
  if (!absl::IsDataLoss(read)) return read;
  ++counters_.checksum_failures;
  KVTIER_LOG(ERROR) << read.message();
  absl::StatusOr<SegmentRef> intact = host_->Get(manifest, band, layer);
  if (intact.ok()) return *std::move(intact);
  Lose(object, band);
  return read;
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
  DropUselessFills(*object);
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
  absl::Status unread;
  for (uint32_t band = 0; band < pinned->resident_bands(); ++band) {
    for (uint32_t layer = 0; layer < pinned->manifest()->geometry.layer_count(); ++layer) {
      KVTIER_ASSIGN_OR_RETURN(
          const VerifiedCopies verified,
          VerifySegmentCopies(pinned->object(), BandIndex(band), LayerIndex(layer)));
      unread.Update(verified.unread);
    }
  }
  return unread;
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
  if (DiskBands(*object) > band.value()) {
    // Nobody waits for a verification: it takes what is free, or what the disk has as well.
    const absl::StatusOr<std::shared_ptr<BandMemory>> piece =
        AllocatePiece(entry.encoded_bytes(), RoomCost::kNothing);
    if (piece.ok()) {
      const absl::Status read =
          disk_->Read(manifest, band, layer, (*piece)->Writable(LayerIndex(0)));
      on_disk = read.ok() ? absl::StatusOr<SegmentRef>((*piece)->Segment(LayerIndex(0))) : read;
    } else {
      ++counters_.reads_refused;
      verified.unread = piece.status();
      if (verified.repaired) return verified;  // From there: nothing else is left to look at.
      if (!in_host.ok()) return piece.status();
    }
  }
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
    return GivenUp(*object, band);
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
