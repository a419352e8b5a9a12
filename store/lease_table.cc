#include "store/lease_table.h"

#include "absl/strings/str_cat.h"
#include "base/fair_share.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "base/too_large.h"

namespace kvtier {

Lease::~Lease() {
  table_.End(id_);
  const TenantId tenant = object_->tenant();
  const std::shared_ptr<const Manifest> manifest = object_->manifest();
  const uint32_t band_count = object_->band_count();
  object_.reset();  // First: what is not counted is not held, but for reads that go on.
  KVTIER_SYNC_POINT("store.lease.before_release");
  table_.Release(tenant, *manifest, band_count);
}

LeaseTable::LeaseTable(const Options& options, TieredStore& store)
    : options_(options), store_(store), epoch_(store.incarnation()) {}

LeaseTable::~LeaseTable() {
  MutexLock lock(&mutex_);
  KVTIER_CHECK_EQ(reserved_, 0u) << "a lease outlives its table";
}

absl::Status LeaseTable::Reserve(const TenantId& tenant, const Manifest& manifest,
                                 uint32_t band_count) {
  MutexLock lock(&mutex_);
  const auto found = own_.find(tenant);
  const Own own = found == own_.end() ? Own() : found->second;
  switch (MayTakeSlot(own.leases, reserved_, options_.leases_max)) {
    case SlotAnswer::kYes:
      break;
    case SlotAnswer::kShareIsUsedUp:
      ++refused_;
      return absl::ResourceExhaustedError(absl::StrCat(
          "tenant ", tenant.name(), " holds ", own.leases,
          " leases, its share at this moment of the limit (leases_max) of ", options_.leases_max));
    case SlotAnswer::kAllAreTaken:
      ++refused_;
      return absl::ResourceExhaustedError(
          absl::StrCat(options_.leases_max, " leases are held already, the limit (leases_max)"));
  }
  if (const uint64_t bytes = manifest.PrefixBytes(band_count);
      options_.bytes_max != 0 && bytes > options_.bytes_max) {
    ++refused_;
    return TooLargeError(absl::StrCat("a lease of ", bytes, " bytes; all leases together may hold ",
                                      options_.bytes_max, " (lease_bytes_max)"));
  }
  uint64_t more_bytes = 0;
  for (uint32_t band = 0; band < band_count; ++band) {
    if (!band_holders_.contains({&manifest, band})) {
      more_bytes += manifest.bands[band].encoded_bytes();
    }
  }
  // What others hold already costs nothing more, whatever the share is.
  if (options_.bytes_max != 0 && more_bytes > 0) {
    switch (MayTake(own.bytes, more_bytes, bytes_, options_.bytes_max)) {
      case SlotAnswer::kYes:
        break;
      case SlotAnswer::kShareIsUsedUp:
        ++refused_;
        return absl::ResourceExhaustedError(absl::StrCat(
            "tenant ", tenant.name(), " holds ", own.bytes, " bytes under leases, and ", more_bytes,
            " more would exceed its share at this moment of the limit (lease_bytes_max) of ",
            options_.bytes_max));
      case SlotAnswer::kAllAreTaken:
        ++refused_;
        return absl::ResourceExhaustedError(absl::StrCat(
            "a lease of ", more_bytes, " more bytes, of which all leases together may hold ",
            options_.bytes_max, " (lease_bytes_max)"));
    }
  }
  for (uint32_t band = 0; band < band_count; ++band) {
    ++band_holders_[{&manifest, band}];
  }
  ++reserved_;
  Own& now = own_[tenant];
  ++now.leases;
  now.bytes += more_bytes;
  bytes_ += more_bytes;
  return absl::OkStatus();
}

void LeaseTable::Release(const TenantId& tenant, const Manifest& manifest, uint32_t band_count) {
  MutexLock lock(&mutex_);
  const auto own = own_.find(tenant);
  KVTIER_CHECK(own != own_.end());
  for (uint32_t band = 0; band < band_count; ++band) {
    const auto holders = band_holders_.find({&manifest, band});
    KVTIER_CHECK(holders != band_holders_.end());
    if (--holders->second > 0) continue;
    band_holders_.erase(holders);
    bytes_ -= manifest.bands[band].encoded_bytes();
    own->second.bytes -= manifest.bands[band].encoded_bytes();
  }
  --reserved_;
  if (--own->second.leases == 0) own_.erase(own);
}

absl::StatusOr<std::unique_ptr<Lease>> LeaseTable::Acquire(const FetchRequest& request,
                                                           BandPlacement placement) {
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<PinnedObject> pinned,
                          store_.Pin(request.tenant, request.key, request.upload_id));
  const std::shared_ptr<const Manifest> manifest = pinned->manifest();
  KVTIER_ASSIGN_OR_RETURN(const uint32_t band_count,
                          ChooseBands(*manifest, pinned->resident_bands(), request));
  KVTIER_RETURN_IF_ERROR(Reserve(request.tenant, *manifest, band_count));
  std::vector<std::shared_ptr<const BandMemory>> bands;
  for (uint32_t band = 0; band < band_count; ++band) {
    absl::StatusOr<std::shared_ptr<const BandMemory>> held =
        pinned->Hold(BandIndex(band), placement);
    if (!held.ok()) {
      bands.clear();
      Release(request.tenant, *manifest, band_count);
      if (absl::IsResourceExhausted(held.status())) {
        MutexLock lock(&mutex_);
        ++refused_;
      }
      return held.status();
    }
    bands.push_back(*std::move(held));
  }
  auto object =
      std::make_shared<const HeldObject>(request.tenant, std::move(pinned), std::move(bands));
  MutexLock lock(&mutex_);
  const LeaseId id{.id = next_id_++, .epoch = epoch_};
  leases_.emplace(id.id, object);
  return std::unique_ptr<Lease>(new Lease(*this, id, std::move(object)));
}

void LeaseTable::End(LeaseId id) {
  MutexLock lock(&mutex_);
  leases_.erase(id.id);  // The handle still has it: nothing is let go of under the lock.
}

absl::StatusOr<std::shared_ptr<const HeldObject>> LeaseTable::Find(const TenantId& tenant,
                                                                   LeaseId id) const {
  MutexLock lock(&mutex_);
  const auto found = leases_.find(id.id);
  if (id.epoch != epoch_ || found == leases_.end() || found->second->tenant() != tenant) {
    return absl::AbortedError(
        absl::StrCat("lease ", id.id, " of epoch ", id.epoch, " is not held (any more)"));
  }
  return found->second;
}

LeaseTable::Usage LeaseTable::usage() const {
  MutexLock lock(&mutex_);
  return {.leases = leases_.size(),
          .bytes = bytes_,
          .bytes_max = options_.bytes_max,
          .refused = refused_};
}

}  // namespace kvtier
