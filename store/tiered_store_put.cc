#include <algorithm>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/fair_share.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "base/too_large.h"
#include "store/tiered_store_impl.h"

namespace kvtier {
namespace {

std::span<const SegmentRef> LayersOf(const Manifest& manifest, BandIndex band,
                                     const std::vector<SegmentRef>& segments) {
  const size_t layers = manifest.geometry.layer_count();
  return std::span(segments).subspan(band.value() * layers, layers);
}

uint32_t BandCountOf(const Manifest& manifest) {
  return static_cast<uint32_t>(manifest.bands.size());
}

// Whether `object` is the upload of that manifest under another id (ReserveUploadId).
bool IsSentAs(const ObjectState& object, const Manifest& manifest) {
  if (object.sent_as != manifest.upload_id) return false;
  Manifest sent = *object.manifest;
  sent.upload_id = manifest.upload_id;
  return sent == manifest;
}

}  // namespace

// --- Uploads that are open -----------------------------------------------------------------------

absl::StatusOr<std::shared_ptr<Upload>> TieredStoreImpl::FindOpen(
    const TenantId& tenant, const Manifest& manifest, Durability durability,
    const std::optional<UploadId>& replaces) {
  const auto mismatch = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("upload id ", manifest.upload_id.ToHex(), " names another object already"));
  };
  // Another tenant's upload of the same id is none of this one's business.
  const ObjectPtr sealed = index_.FindUpload(manifest.upload_id);
  if (sealed != nullptr && sealed->tenant == tenant && *sealed->manifest != manifest) {
    return mismatch();
  }
  const auto found = uploads_.find({tenant, manifest.upload_id});
  if (found == uploads_.end()) return nullptr;
  OpenUpload& open = found->second;
  if (*open.upload->manifest() != manifest) return mismatch();
  if (open.replaces != replaces) {
    const auto name = [](const std::optional<UploadId>& id) {
      return id.has_value() ? id->ToHex() : std::string("none");
    };
    return absl::InvalidArgumentError(absl::StrCat("upload ", manifest.upload_id.ToHex(),
                                                   " was begun to replace ", name(open.replaces),
                                                   ", not ", name(replaces)));
  }
  if (durability == Durability::kDisk) open.durability = durability;
  open.seen_at = clock_.Now();
  return open.upload;
}

void TieredStoreImpl::CloseIdleUploads() {
  const absl::Time now = clock_.Now();
  std::vector<UploadName> idle;
  for (auto& [name, open] : uploads_) {
    const uint64_t bytes = open.upload->uploaded_bytes();
    if (bytes != open.seen_bytes) {
      open.seen_bytes = bytes;
      open.seen_at = now;
    } else if (now - open.seen_at > limits::kUploadIdleMax) {
      idle.push_back(name);
    }
  }
  for (const UploadName& name : idle) CloseUpload(name);
}

void TieredStoreImpl::CloseUpload(const UploadName& name) {
  const auto found = uploads_.find(name);
  if (found == uploads_.end()) return;
  ReleaseUploadBytes(found->second.tenant, found->second.upload->manifest()->total_bytes());
  uploads_.erase(found);
}

absl::Status TieredStoreImpl::MakeRoomForUpload(const TenantId& tenant, const Manifest& manifest,
                                                std::vector<std::shared_ptr<Upload>>* closed) {
  // Nobody but us holds them, and only under mutex_ could somebody come to: no stream sends them.
  std::vector<const OpenUpload*> idle;
  uint64_t busy_bytes = upload_bytes_;
  uint64_t own_busy = 0;
  for (const auto& [id, open] : uploads_) {
    if (open.upload.use_count() > 1) {
      own_busy += open.tenant == tenant ? 1 : 0;
      continue;
    }
    idle.push_back(&open);
    busy_bytes -= open.upload->manifest()->total_bytes();
  }
  switch (MayTakeSlot(own_busy, uploads_.size() - idle.size(), limits::kUploadsMax)) {
    case SlotAnswer::kYes:
      break;
    case SlotAnswer::kShareIsUsedUp:
      ++counters_.upload_share_refusals;
      // Not how many the others have: that is not this tenant's to know.
      return absl::ResourceExhaustedError(
          absl::StrCat("tenant ", tenant.name(), " has ", own_busy,
                       " uploads open, its share at this moment of the limit (kUploadsMax) of ",
                       limits::kUploadsMax));
    case SlotAnswer::kAllAreTaken:
      return absl::ResourceExhaustedError(absl::StrCat(
          uploads_.size(), " uploads are open, the limit (kUploadsMax) is ", limits::kUploadsMax));
  }
  const uint64_t bytes = manifest.total_bytes();
  const auto has_room = [&](uint64_t beside_bytes) {
    return upload_bytes_max_ == 0 ||
           (beside_bytes <= upload_bytes_max_ && bytes <= upload_bytes_max_ - beside_bytes);
  };
  if (!has_room(0)) {
    return TooLargeError(absl::StrCat(
        "an upload of ", bytes, " bytes; the limit (upload_bytes_max) is ", upload_bytes_max_));
  }
  if (!has_room(busy_bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("an upload of ", bytes, " bytes beside ", busy_bytes,
                     " bytes of others; the limit (upload_bytes_max) is ", upload_bytes_max_));
  }
  std::ranges::stable_sort(idle, {}, &OpenUpload::seen_at);
  for (const OpenUpload* open : idle) {
    if (uploads_.size() < limits::kUploadsMax && has_room(upload_bytes_)) break;
    closed->push_back(open->upload);
    CloseUpload(open->name());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Upload>> TieredStoreImpl::StartUpload(
    const TenantId& tenant, std::shared_ptr<const Manifest> manifest, Durability durability,
    const std::optional<UploadId>& replaces, absl::Duration ttl) {
  KVTIER_RETURN_IF_ERROR(manifest->Validate());
  if (ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a time to live of ", absl::FormatDuration(ttl)));
  }
  if (durability == Durability::kDisk && disk_ == nullptr) {
    return absl::FailedPreconditionError("durability DISK: this store has no disk");
  }
  for (;;) {
    bool needs_quota = false;
    {
      std::vector<std::shared_ptr<Upload>> closed;
      MutexLock lock(&mutex_);
      CloseIdleUploads();
      KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<Upload> open,
                              FindOpen(tenant, *manifest, durability, replaces));
      if (open != nullptr) return open;
      const absl::StatusOr<uint64_t> excess = QuotaExcess(tenant, *manifest);
      if (!excess.ok()) {
        ++counters_.quota_refusals;
        return excess.status();
      }
      needs_quota = *excess > 0;
      if (!needs_quota && !NeedsIndexRoom(tenant, *manifest)) {
        KVTIER_RETURN_IF_ERROR(MakeRoomForUpload(tenant, *manifest, &closed));
        ReserveUploadBytes(tenant, manifest->total_bytes());  // While we allocate.
        break;
      }
    }
    // Another upload may take what this frees; then more is given up, and in the end there is
    // nothing left.
    KVTIER_RETURN_IF_ERROR(needs_quota ? MakeRoomInQuota(tenant, *manifest) : MakeIndexRoom());
  }
  absl::StatusOr<std::shared_ptr<Upload>> upload = AllocateUpload(manifest);

  MutexLock lock(&mutex_);
  absl::StatusOr<std::shared_ptr<Upload>> raced = FindOpen(tenant, *manifest, durability, replaces);
  if (!upload.ok() || !raced.ok() || *raced != nullptr) {
    ReleaseUploadBytes(tenant, manifest->total_bytes());
    return upload.ok() ? raced : upload;
  }
  uploads_[{tenant, manifest->upload_id}] =
      OpenUpload{*upload, tenant, durability, replaces, ttl, 0, clock_.Now()};
  return upload;
}

absl::StatusOr<std::shared_ptr<Upload>> TieredStoreImpl::AllocateUpload(
    const std::shared_ptr<const Manifest>& manifest) {
  const uint64_t bytes = Upload::ChargeOf(*manifest, *memory_);
  // Another call may take the room that we made; a bounded number of times.
  absl::StatusOr<std::shared_ptr<Upload>> upload;
  for (int attempt = 0; attempt < 4;) {
    const absl::Status room = MakeRoom(bytes, /*own=*/nullptr, RoomCost::kQuality);
    if (!room.ok()) {
      const uint64_t budget_bytes = host_->Usage().budget_bytes;
      if (bytes > budget_bytes || !CloseAnIdleUpload()) return room;
      continue;
    }
    upload = Upload::Create(manifest, *memory_);
    if (!absl::IsResourceExhausted(upload.status())) return upload;
    ++attempt;
  }
  return upload;
}

bool TieredStoreImpl::CloseAnIdleUpload() {
  std::shared_ptr<Upload> closed;  // Its memory goes after the lock.
  MutexLock lock(&mutex_);
  const OpenUpload* oldest = nullptr;
  for (const auto& [id, open] : uploads_) {
    if (open.upload.use_count() > 1) continue;
    if (oldest == nullptr || open.seen_at < oldest->seen_at) oldest = &open;
  }
  if (oldest == nullptr) return false;
  closed = oldest->upload;
  CloseUpload(oldest->name());
  return true;
}

absl::StatusOr<uint64_t> TieredStoreImpl::UploadedBytes(const TenantId& tenant,
                                                        const UploadId& upload) {
  MutexLock lock(&mutex_);
  const auto open = uploads_.find({tenant, upload});
  if (open != uploads_.end()) {
    open->second.seen_at = clock_.Now();
    return open->second.upload->uploaded_bytes();
  }
  const ObjectPtr sealed = index_.FindUpload(upload);
  if (sealed != nullptr && sealed->tenant == tenant) return sealed->manifest->total_bytes();
  return absl::NotFoundError("");
}

void TieredStoreImpl::AbandonUpload(const TenantId& tenant, const UploadId& upload) {
  std::shared_ptr<Upload> released;  // Its memory goes after the lock.
  MutexLock lock(&mutex_);
  const auto open = uploads_.find({tenant, upload});
  if (open == uploads_.end()) return;
  released = open->second.upload;
  CloseUpload({tenant, upload});
}

// --- Sealing -------------------------------------------------------------------------------------

absl::StatusOr<ObjectStat> TieredStoreImpl::FinishUpload(const TenantId& tenant,
                                                         const std::shared_ptr<Upload>& upload) {
  const Manifest& manifest = *upload->manifest();
  const UploadName name{tenant, manifest.upload_id};
  absl::StatusOr<ObjectStat> finished = [&]() -> absl::StatusOr<ObjectStat> {
    const Turns::Turn turn = turns_.Take(TurnName(tenant, manifest.key));
    OpenUpload open;
    ObjectPtr sealed;  // By an earlier stream.
    ObjectPtr stored;
    {
      MutexLock lock(&mutex_);
      sealed = index_.FindUpload(manifest.upload_id);
      if (sealed != nullptr && sealed->tenant != tenant) sealed = nullptr;
      const auto found = uploads_.find(name);
      // Not if it was sealed by another stream or given up, and another upload begun under its id.
      const bool is_open = found != uploads_.end() && found->second.upload == upload;
      if (sealed != nullptr && sealed->retired && is_open) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "upload ", manifest.upload_id.ToHex(), " was stored and removed, and is still read"));
      }
      stored = FindLive(tenant, manifest.key);
      const bool is_renamed = stored != nullptr && IsSentAs(*stored, manifest);
      if (!is_open) {
        if (sealed != nullptr) return StatOf(*sealed);
        if (is_renamed) return StatOf(*stored);
        return absl::NotFoundError(
            absl::StrCat("upload ", manifest.upload_id.ToHex(), " is not open"));
      }
      open = found->second;
      if (is_renamed) sealed = stored;
    }
    // Sent again, perhaps asking for more than it got then.
    if (sealed != nullptr) return KeepStored(sealed, open);
    if (!open.upload->complete()) {
      return absl::InvalidArgumentError(
          absl::StrCat("upload ", manifest.upload_id.ToHex(), ": ", open.upload->uploaded_bytes(),
                       " of ", manifest.total_bytes(), " bytes have arrived"));
    }
    bool reaches = false;  // Whether what is stored still goes as far as the upload.
    if (stored != nullptr) {
      MutexLock lock(&mutex_);
      const uint32_t resident = ResidentBands(*stored);
      reaches =
          resident > 0 && stored->manifest->bands[resident - 1].edge >= manifest.bands.back().edge;
    }
    if (open.replaces.has_value()) {
      if (stored == nullptr || stored->manifest->upload_id != *open.replaces) {
        return absl::AbortedError(absl::StrCat("upload ", manifest.upload_id.ToHex(), " replaces ",
                                               open.replaces->ToHex(), ", but the store has ",
                                               stored == nullptr
                                                   ? std::string("none of this key")
                                                   : stored->manifest->upload_id.ToHex()));
      }
      // Made from bands that were given up since: they must not come back.
      if (!reaches) {
        return absl::AbortedError(absl::StrCat(
            "upload ", manifest.upload_id.ToHex(), " goes to ratio ",
            manifest.bands.back().edge.ToString(), "; bands of ", open.replaces->ToHex(),
            ", which it replaces, were given up meanwhile, and that one does not any more"));
      }
      return Publish(open, open.durability);
    }
    return reaches ? KeepStored(stored, open) : Publish(open, open.durability);
  }();
  if (!finished.ok()) ++counters_.uploads_refused;
  if (absl::IsAborted(finished.status())) {
    MutexLock lock(&mutex_);
    CloseUpload(name);
  }
  Trim();
  return finished;
}

// What is stored reaches as far: a second computation of the same key brings nothing.
absl::StatusOr<ObjectStat> TieredStoreImpl::KeepStored(const ObjectPtr& stored,
                                                       const OpenUpload& open) {
  if (open.durability == Durability::kDisk) {
    KVTIER_RETURN_IF_ERROR(
        StoreMakingRoom(BytesNotOnDisk(stored), [&] { return EnsureOnDisk(stored); }));
  }
  KVTIER_RETURN_IF_ERROR(Prolong(stored, clock_.Now() + open.ttl));
  MutexLock lock(&mutex_);
  if (open.durability == Durability::kDisk) stored->durability = Durability::kDisk;
  CloseUpload(open.name());
  return StatOf(*stored);
}

std::shared_ptr<const Manifest> TieredStoreImpl::ReserveUploadId(const OpenUpload& open) {
  const std::shared_ptr<const Manifest>& sent = open.upload->manifest();
  MutexLock lock(&mutex_);
  const auto debt = disk_debts_.find(sent->upload_id);
  const bool is_free =
      index_.FindUpload(sent->upload_id) == nullptr &&
      (debt == disk_debts_.end() || debt->second.name == ObjectName{open.tenant, sent->key});
  if (is_free && sealing_.insert(sent->upload_id).second) return sent;
  auto renamed = std::make_shared<Manifest>(*sent);
  do {
    renamed->upload_id = MakeUploadId();
  } while (!sealing_.insert(renamed->upload_id).second);
  return renamed;
}

absl::StatusOr<ObjectStat> TieredStoreImpl::Publish(const OpenUpload& open, Durability durability) {
  const std::shared_ptr<const Manifest> manifest = ReserveUploadId(open);
  const absl::Cleanup sealed = [&] {
    MutexLock lock(&mutex_);
    sealing_.erase(manifest->upload_id);
  };
  const absl::Time sealed_at = clock_.Now();
  ObjectPtr replaced;
  ObjectAttributes attributes;
  {
    MutexLock lock(&mutex_);
    replaced = index_.Find(open.tenant, manifest->key);
    KVTIER_ASSIGN_OR_RETURN(attributes, AttributesOfNew(open, sealed_at));
  }
  // What is on disk is replaced on disk, or a crash would bring the old one back.
  if (replaced != nullptr && DiskBands(*replaced) > 0) durability = Durability::kDisk;

  if (durability == Durability::kDisk) {
    uint64_t bytes = 0;
    for (const BandEntry& band : manifest->bands) bytes += disk_->ChargeOf(band);
    KVTIER_RETURN_IF_ERROR(StoreMakingRoom(
        bytes, [&] { return StoreOnDisk(open, *manifest, sealed_at, attributes); }));
  } else {
    KVTIER_RETURN_IF_ERROR(StoreInHost(*manifest, open.upload->segments()));
  }
  const auto object = std::make_shared<ObjectState>(open.tenant, manifest, sealed_at, durability,
                                                    BandCountOf(*manifest));
  {
    MutexLock lock(&mutex_);
    object->attributes = attributes;
    if (const UploadId& sent = open.upload->manifest()->upload_id; sent != manifest->upload_id) {
      object->sent_as = sent;
    }
    Insert(object, ChangeCause::kPut);
    CloseUpload(open.name());
  }
  KVTIER_SYNC_POINT("store.put.after_publish");
  if (durability == Durability::kDisk) {
    Trim();  // The replaced one's memory first.
    FillHost(object, open.upload->segments());
  }
  MutexLock lock(&mutex_);
  return StatOf(*object);
}

absl::Status TieredStoreImpl::StoreOnDisk(const OpenUpload& open, const Manifest& manifest,
                                          absl::Time sealed_at,
                                          const ObjectAttributes& attributes) {
  const std::vector<SegmentRef> segments = open.upload->segments();
  KVTIER_SYNC_POINT("store.put.before_disk");
  // Left by an attempt that failed and could not clean up.
  KVTIER_RETURN_IF_ERROR(disk_->DropBands(manifest.upload_id, 0));
  SettleDiskDebt(manifest.upload_id);
  absl::Status stored;
  for (uint32_t band = 0; stored.ok() && band < BandCountOf(manifest); ++band) {
    stored =
        disk_->PutBand(manifest, BandIndex(band), LayersOf(manifest, BandIndex(band), segments));
  }
  // First: it must never be sealed without them.
  if (stored.ok()) stored = disk_->SetAttributes(manifest.upload_id, attributes);
  if (stored.ok()) stored = disk_->Seal(open.tenant, manifest, sealed_at);
  if (!stored.ok()) {
    const absl::Status removed = disk_->DropBands(manifest.upload_id, 0);
    if (!removed.ok()) OweDisk({open.tenant, manifest.key}, manifest.upload_id, 0, removed);
    return stored;
  }
  KVTIER_SYNC_POINT("store.put.after_disk");
  return absl::OkStatus();
}

absl::Status TieredStoreImpl::StoreInHost(const Manifest& manifest,
                                          const std::vector<SegmentRef>& segments) {
  absl::Status stored;
  for (uint32_t band = 0; stored.ok() && band < BandCountOf(manifest); ++band) {
    stored =
        host_->PutBand(manifest, BandIndex(band), LayersOf(manifest, BandIndex(band), segments));
  }
  if (!stored.ok()) host_->DropBands(manifest.upload_id, 0).IgnoreError();
  return stored;
}

void TieredStoreImpl::FillHost(const ObjectPtr& object, const std::vector<SegmentRef>& segments) {
  const Manifest& manifest = *object->manifest;
  uint32_t admitted = BandCountOf(manifest);
  // Its memory is there; but if the next one like it would drive others out, it may not be worth
  // it.
  if (!HasRoom(host_->Usage(), manifest.total_bytes())) {
    MutexLock lock(&mutex_);
    admitted = host_policy_.Admit(*object);
  }
  for (uint32_t band = 0; band < admitted; ++band) {
    // A reader that came at once may be promoting it already.
    if (!host_->PutBand(manifest, BandIndex(band), LayersOf(manifest, BandIndex(band), segments))
             .ok()) {
      break;
    }
  }
  {
    MutexLock lock(&mutex_);
    // Lost or deleted meanwhile: Trim takes what we have put.
    if (object->retired || object->band_limit < HostBands(*object)) garbage_.insert(object);
    TellPolicies(object);
  }
  DropUselessFills(*object);  // Of a reader that came at once.
}

}  // namespace kvtier
