#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

bool TieredStoreImpl::IsExpired(const ObjectState& object) const {
  return object.attributes.expires_at <= clock_.Now();
}

TieredStoreImpl::ObjectPtr TieredStoreImpl::FindLive(const TenantId& tenant, const Key& key) const {
  ObjectPtr object = index_.Find(tenant, key);
  return object == nullptr || IsExpired(*object) ? nullptr : object;
}

absl::StatusOr<TieredStoreImpl::ObjectPtr> TieredStoreImpl::FindNamed(
    const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) const {
  ObjectPtr object = FindLive(tenant, key);
  if (object == nullptr) return absl::NotFoundError("");
  if (upload.has_value() && *upload != object->upload()) {
    return absl::AbortedError(absl::StrCat("upload ", upload->ToHex(), " is not the current one; ",
                                           object->upload().ToHex(), " is"));
  }
  return object;
}

void TieredStoreImpl::Decide(ObjectState& object, const ObjectAttributes& attributes) {
  object.attributes = attributes;
  if (object.retired) return;
  expiring_.Set(object.upload(), attributes.expires_at);
  Account(object, object.accounted_bands);
}

absl::StatusOr<ObjectStat> TieredStoreImpl::SetAttributes(const TenantId& tenant, const Key& key,
                                                          const std::optional<UploadId>& upload,
                                                          const AttributeChange& change) {
  const Turns::Turn turn = turns_.Take(TurnName(tenant, key));
  ObjectPtr object;
  ObjectAttributes before;
  {
    MutexLock lock(&mutex_);
    KVTIER_ASSIGN_OR_RETURN(object, FindNamed(tenant, key, upload));
    before = object->attributes;
    ObjectAttributes after = before;
    if (change.pinned.has_value()) after.pinned = *change.pinned;
    if (change.expires_at.has_value()) after.expires_at = *change.expires_at;
    if (after.pinned && !before.pinned) {
      KVTIER_RETURN_IF_ERROR(ledger_.CheckPin(tenant, object->accounted.resident_bytes));
    }
    Decide(*object, after);
  }
  KVTIER_RETURN_IF_ERROR(RecordOrUndo(object, before));
  MutexLock lock(&mutex_);
  // Lost meanwhile.
  if (object->retired) return absl::NotFoundError("");
  return StatOf(*object);
}

absl::Status TieredStoreImpl::Prolong(const ObjectPtr& object, absl::Time expires_at) {
  ObjectAttributes before;
  {
    MutexLock lock(&mutex_);
    before = object->attributes;
    if (before.expires_at >= expires_at) return absl::OkStatus();
    Decide(*object, {.pinned = before.pinned, .expires_at = expires_at});
  }
  return RecordOrUndo(object, before);
}

absl::Status TieredStoreImpl::RecordOrUndo(const ObjectPtr& object,
                                           const ObjectAttributes& before) {
  KVTIER_SYNC_POINT("store.attributes.decided");
  if (DiskBands(*object) == 0) return absl::OkStatus();
  absl::Status recorded = RecordAttributes(object);
  if (!recorded.ok()) {
    MutexLock lock(&mutex_);
    Decide(*object, before);
  }
  return recorded;
}

absl::Status TieredStoreImpl::RecordAttributes(const ObjectPtr& object) {
  ObjectAttributes attributes;
  {
    MutexLock lock(&mutex_);
    attributes = object->attributes;
  }
  return disk_->SetAttributes(object->upload(), attributes);
}

absl::StatusOr<ObjectAttributes> TieredStoreImpl::AttributesOfNew(const OpenUpload& open,
                                                                  absl::Time sealed_at) const {
  const std::shared_ptr<const Manifest>& manifest = open.upload->manifest();
  ObjectAttributes attributes{.pinned = false, .expires_at = sealed_at + open.ttl};
  const ObjectPtr replaced = FindLive(open.tenant, manifest->key);
  if (replaced == nullptr) return attributes;
  attributes.pinned = replaced->attributes.pinned;
  // Other bands of the same bytes live as long as those would have.
  if (open.replaces.has_value() && open.ttl == absl::InfiniteDuration()) {
    attributes.expires_at = replaced->attributes.expires_at;
  }
  const uint64_t pinned_before = replaced->accounted.pinned_bytes;
  if (attributes.pinned && manifest->total_bytes() > pinned_before) {
    KVTIER_RETURN_IF_ERROR(ledger_.CheckPin(open.tenant, manifest->total_bytes() - pinned_before));
  }
  return attributes;
}

// --- Expiry --------------------------------------------------------------------------------------

uint64_t TieredStoreImpl::RemoveExpired() {
  uint64_t removed = 0;
  std::optional<ExpiryQueue::Entry> at;
  for (;;) {
    ObjectPtr object;
    {
      MutexLock lock(&mutex_);
      at = expiring_.Due(clock_.Now(), at);
      if (!at.has_value()) break;
      object = index_.FindUpload(at->second);
      KVTIER_CHECK(object != nullptr) << "what is gone does not expire";
    }
    const Turns::Turn turn = turns_.Take(TurnName(object->tenant, object->manifest->key));
    {
      MutexLock lock(&mutex_);  // Replaced, or given more time, before it was our turn.
      if (object->retired || !IsExpired(*object)) continue;
    }
    const absl::Status gone = RemoveWhole(object, ChangeCause::kExpired);
    if (gone.ok()) {
      ++removed;
    } else {
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10)
          << "an expired object keeps its room for now: " << gone.message();
    }
  }
  Trim();  // Also what could not be removed before.
  return removed;
}

}  // namespace kvtier
